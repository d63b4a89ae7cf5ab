module github.com/coveyhq/covey/services

go 1.26.0
