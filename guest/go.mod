module github.com/coveyhq/covey/guest

go 1.26.0
