package account

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func database(t *testing.T, passwd, group string) Database {
	t.Helper()
	d := Database{Passwd: filepath.Join(t.TempDir(), "passwd"), Group: filepath.Join(t.TempDir(), "group")}
	for path, content := range map[string]string{d.Passwd: passwd, d.Group: group} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestUsersAreFoundByNameNumberAndDefault(t *testing.T) {
	d := database(t, "root:x:0:0:r:/root:/bin/bash\nbroken line\nbad:x:a:b::/:/bin/sh\nuser:x:1000:1001::/home/user:/bin/bash\n",
		"root:x:0:\nsudo:x:27:other,user\nuser:x:1001:\nx:x:30:user\n")
	user := &User{Name: "user", UID: 1000, GID: 1001, Groups: []int{27, 30}, Home: "/home/user", Shell: "/bin/bash"}
	for name, want := range map[string]*User{
		"": user, "user": user, "1000": user, "root": {Name: "root", Home: "/root", Shell: "/bin/bash"}, "0": {Name: "root", Home: "/root", Shell: "/bin/bash"},
		"4242": {Name: "4242", UID: 4242, GID: 4242, Home: "/", Shell: "/bin/sh"},
	} {
		if got, err := d.Lookup(name); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", name, got, err, want)
		}
	}
	for _, name := range []string{"nobody", "bad", "-5", "99999999999"} {
		if u, err := d.Lookup(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %+v, %v", name, u, err)
		}
	}
	users, groups := d.Names()
	if users[1000] != "user" || groups[27] != "sudo" || users[5] != "" {
		t.Errorf("%v, %v", users, groups)
	}
}

func TestWithoutAccountsThereIsRoot(t *testing.T) {
	d := Database{Passwd: "/no/such", Group: "/no/such"}
	if u, err := d.Lookup(""); err != nil || u.UID != 0 || u.Home != "/root" {
		t.Errorf("%+v, %v", u, err)
	}
}
