module github.com/coveyhq/covey/hostagent

go 1.26.0
