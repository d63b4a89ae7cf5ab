module github.com/coveyhq/covey/gateway

go 1.26.0
