module github.com/coveyhq/covey/bench

go 1.26.0
