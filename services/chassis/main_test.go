package chassis

import (
	"os"
	"testing"

	"github.com/coveyhq/covey/services/chassis/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Main(m)) }
