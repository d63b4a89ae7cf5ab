module github.com/coveyhq/covey/deploy

go 1.26.0
