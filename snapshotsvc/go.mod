module github.com/coveyhq/covey/snapshotsvc

go 1.26.0
