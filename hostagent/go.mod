module github.com/coveyhq/covey/hostagent

go 1.26.0

require (
	github.com/coveyhq/covey/proto v0.0.0
	github.com/coveyhq/covey/services v0.0.0
	google.golang.org/grpc v1.84.0
	google.golang.org/protobuf v1.36.12
)

require (
	go.uber.org/goleak v1.3.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/coveyhq/covey/proto => ../proto

replace github.com/coveyhq/covey/services => ../services
