package mesh

import "path/filepath"

// hostConfig is the configuration of one host agent of the mesh.
func (s *starter) hostConfig(id string) map[string]any {
	return map[string]any{
		"chassis":    s.chassis("covey-host", "hostagentd-"+id, s.host(id)+":0"),
		"host_id":    id,
		"state_dir":  s.path(id),
		"memory_dir": filepath.Join(memoryDir(s.o.Dir), id),
		"artifacts":  s.t.Artifacts,
		"capacity":   map[string]any{"vcpus": s.o.VCPUs, "memory_mb": s.o.MemoryMB, "disk_mb": 1 << 20, "slots": s.o.Slots},
		"stop":       "destroy",
		"labels":     map[string]string{"host": id},
		"registry":   map[string]any{"enabled": true},
	}
}

// memoryDir is where the hosts of the mesh in dir have their memory images: in a tmpfs, as VMs map them.
func memoryDir(dir string) string { return filepath.Join("/dev/shm/covey", dir) }
