module github.com/coveyhq/covey/scheduler

go 1.26.0
