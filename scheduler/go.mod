module github.com/coveyhq/covey/scheduler

go 1.26.0

require github.com/cockroachdb/datadriven v1.0.2

require github.com/pmezard/go-difflib v1.0.0 // indirect

replace github.com/coveyhq/covey/proto => ../proto

replace github.com/coveyhq/covey/services => ../services
