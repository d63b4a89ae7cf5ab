package pager_test

import (
	"encoding/json"
	"math/bits"
	"testing"

	"github.com/coveyhq/covey/hostagent/internal/pager"
)

// FuzzRegionsThatAreTakenLieInTheImage: a VMM that its guest has taken over sends what it likes.
func FuzzRegionsThatAreTakenLieInTheImage(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096,"page_size_kib":4096}]`))
	f.Add([]byte(`[{"base_host_virt_addr":18446744073709547520,"size":8192,"offset":0,"page_size":4096}]`))
	f.Add([]byte(`[{"base_host_virt_addr":4096,"size":4096,"offset":18446744073709547520,"page_size_kib":4096}]`))
	f.Add([]byte(`[{"base_host_virt_addr":4096,"size":8192,"page_size":4096},{"base_host_virt_addr":8192,"size":4096,"page_size":4096}]`))
	const size = 1 << 20
	f.Fuzz(func(t *testing.T, text []byte) {
		var regions []pager.Region
		if json.Unmarshal(text, &regions) != nil || pager.CheckRegions(regions, size) != nil {
			return
		}
		for _, r := range regions {
			if end, carry := bits.Add64(r.Offset, r.Size, 0); carry != 0 || end > size || r.Size == 0 {
				t.Errorf("%+v is not in the image", r)
			}
			if _, carry := bits.Add64(r.Base, r.Size-1, 0); carry != 0 {
				t.Errorf("%+v wraps around", r)
			}
		}
	})
}
