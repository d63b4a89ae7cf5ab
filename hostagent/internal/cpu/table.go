package cpu

import "github.com/coveyhq/covey/services/chassis/cpufeature"

// Register is one of the registers that CPUID answers in.
type Register uint8

// The registers, by Firecracker's names for them.
const (
	EAX Register = iota
	EBX
	ECX
	EDX
)

// String is the register's name as Firecracker writes it.
func (r Register) String() string { return [...]string{"eax", "ebx", "ecx", "edx"}[r] }

// place is a register of a CPUID leaf.
type place struct {
	leaf, subleaf uint32
	register      Register
}

// word is the features of one register: their bits, Linux's names, and QEMU's where those differ.
type word struct {
	place
	features []feature
}

type feature struct {
	bit  uint8
	name string
	qemu string
}

// table is from Intel's manual, volume 2, "CPUID", AMD's manual, volume 3, appendix E, and Linux's and QEMU's names for the bits.
var table = []word{
	{place{1, 0, ECX}, []feature{
		{0, "pni", ""}, {1, "pclmulqdq", ""}, {3, "monitor", ""}, {9, "ssse3", ""}, {12, "fma", ""}, {13, "cx16", ""}, {17, "pcid", ""},
		{19, "sse4_1", "sse4.1"}, {20, "sse4_2", "sse4.2"}, {21, "x2apic", ""}, {22, "movbe", ""}, {23, "popcnt", ""},
		{24, "tsc_deadline_timer", "tsc-deadline"}, {25, "aes", ""}, {26, "xsave", ""}, {28, "avx", ""}, {29, "f16c", ""}, {30, "rdrand", ""},
	}},
	{place{1, 0, EDX}, []feature{
		{0, "fpu", ""}, {1, "vme", ""}, {2, "de", ""}, {3, "pse", ""}, {4, "tsc", ""}, {5, "msr", ""}, {6, "pae", ""}, {7, "mce", ""}, {8, "cx8", ""},
		{9, "apic", ""}, {11, "sep", ""}, {12, "mtrr", ""}, {13, "pge", ""}, {14, "mca", ""}, {15, "cmov", ""}, {16, "pat", ""}, {17, "pse36", ""},
		{19, "clflush", ""}, {23, "mmx", ""}, {24, "fxsr", ""}, {25, "sse", ""}, {26, "sse2", ""}, {27, "ss", ""},
	}},
	{place{6, 0, EAX}, []feature{{2, "arat", ""}}},
	{place{7, 0, EBX}, []feature{
		{0, "fsgsbase", ""}, {1, "tsc_adjust", "tsc-adjust"}, {3, "bmi1", ""}, {4, "hle", ""}, {5, "avx2", ""}, {7, "smep", ""}, {8, "bmi2", ""}, {9, "erms", ""},
		{10, "invpcid", ""}, {11, "rtm", ""}, {14, "mpx", ""}, {16, "avx512f", ""}, {17, "avx512dq", ""}, {18, "rdseed", ""}, {19, "adx", ""},
		{20, "smap", ""}, {21, "avx512ifma", ""}, {23, "clflushopt", ""}, {24, "clwb", ""}, {26, "avx512pf", ""}, {27, "avx512er", ""},
		{28, "avx512cd", ""}, {29, "sha_ni", "sha-ni"}, {30, "avx512bw", ""}, {31, "avx512vl", ""},
	}},
	{place{7, 0, ECX}, []feature{
		{1, "avx512vbmi", ""}, {2, "umip", ""}, {3, "pku", ""}, {5, "waitpkg", ""}, {6, "avx512_vbmi2", "avx512vbmi2"}, {8, "gfni", ""}, {9, "vaes", ""},
		{10, "vpclmulqdq", ""}, {11, "avx512_vnni", "avx512vnni"}, {12, "avx512_bitalg", "avx512bitalg"}, {14, "avx512_vpopcntdq", "avx512-vpopcntdq"},
		{16, "la57", ""}, {22, "rdpid", ""}, {25, "cldemote", ""}, {27, "movdiri", ""}, {28, "movdir64b", ""},
	}},
	{place{7, 0, EDX}, []feature{
		{2, "avx512_4vnniw", "avx512-4vnniw"}, {3, "avx512_4fmaps", "avx512-4fmaps"}, {4, "fsrm", ""}, {8, "avx512_vp2intersect", "avx512-vp2intersect"},
		{10, "md_clear", "md-clear"}, {14, "serialize", ""}, {16, "tsxldtrk", "tsx-ldtrk"}, {22, "amx_bf16", "amx-bf16"}, {23, "avx512_fp16", "avx512-fp16"},
		{24, "amx_tile", "amx-tile"}, {25, "amx_int8", "amx-int8"}, {26, "spec_ctrl", "spec-ctrl"}, {27, "intel_stibp", "stibp"},
		{29, "arch_capabilities", "arch-capabilities"}, {31, "spec_ctrl_ssbd", "ssbd"},
	}},
	{place{7, 1, EAX}, []feature{{4, "avx_vnni", "avx-vnni"}, {5, "avx512_bf16", "avx512-bf16"}}},
	{place{0xd, 1, EAX}, []feature{{0, "xsaveopt", ""}, {1, "xsavec", ""}, {2, "xgetbv1", ""}, {3, "xsaves", ""}}},
	{place{0x80000001, 0, ECX}, []feature{
		{0, "lahf_lm", "lahf-lm"}, {2, "svm", ""}, {4, "cr8_legacy", "cr8legacy"}, {5, "abm", ""}, {6, "sse4a", ""}, {7, "misalignsse", ""},
		{8, "3dnowprefetch", ""}, {11, "xop", ""}, {16, "fma4", ""}, {21, "tbm", ""},
	}},
	{place{0x80000001, 0, EDX}, []feature{
		{11, "syscall", ""}, {20, "nx", ""}, {22, "mmxext", ""}, {25, "fxsr_opt", "fxsr-opt"}, {26, "pdpe1gb", ""}, {27, "rdtscp", ""}, {29, "lm", ""},
		{30, "3dnowext", ""}, {31, "3dnow", ""},
	}},
	{place{0x80000008, 0, EBX}, []feature{
		{0, "clzero", ""}, {2, "xsaveerptr", ""}, {9, "wbnoinvd", ""}, {12, "amd_ibpb", "ibpb"}, {15, "amd_stibp", "amd-stibp"}, {24, "amd_ssbd", "amd-ssbd"},
		{25, "virt_ssbd", "virt-ssbd"},
	}},
}

// needs is what a feature is nothing without.
var needs = map[string]string{
	"avx": "xsave", "xsaveopt": "xsave", "xsavec": "xsave", "xgetbv1": "xsave", "xsaves": "xsave", "pku": "xsave", "mpx": "xsave", "amx_tile": "xsave",
	"fma": "avx", "f16c": "avx", "avx2": "avx", "vaes": "avx", "vpclmulqdq": "avx", "xop": "avx", "fma4": "avx", "avx_vnni": "avx2", "avx512f": "avx2",
	"avx512dq": "avx512f", "avx512ifma": "avx512f", "avx512pf": "avx512f", "avx512er": "avx512f", "avx512cd": "avx512f", "avx512bw": "avx512f",
	"avx512vl": "avx512f", "avx512_vpopcntdq": "avx512f", "avx512_4vnniw": "avx512f", "avx512_4fmaps": "avx512f", "avx512_vp2intersect": "avx512vl",
	"avx512vbmi": "avx512bw", "avx512_vbmi2": "avx512bw", "avx512_vnni": "avx512vl", "avx512_bitalg": "avx512bw", "avx512_bf16": "avx512bw",
	"avx512_fp16": "avx512bw", "amx_bf16": "amx_tile", "amx_int8": "amx_tile",
	"sse": "fxsr", "sse2": "sse", "pni": "sse2", "ssse3": "pni", "sse4_1": "ssse3", "sse4_2": "sse4_1", "sse4a": "pni", "3dnowext": "3dnow",
}

// essential are those without which no guest runs; schedulers keep them in every baseline too.
var essential = cpufeature.Essential()
