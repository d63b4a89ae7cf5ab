package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	guestv1 "github.com/coveyhq/covey/proto/gen/go/covey/guest/v1"
	"github.com/coveyhq/covey/services/chassis/page"
)

// filesCmd looks at and changes a sandbox's files without a command that runs in it; cp moves their contents.
func (a *app) filesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "files", Aliases: []string{"file"}, Short: "List, describe, make, move, remove and watch files of a sandbox",
		Long:    "A file is SANDBOX:PATH, as for `covey cp`, which copies them; a path that is not absolute begins at the user's home.",
		Example: "  covey files ls sb_...:/etc\n  covey files rm -r sb_...:out\n  covey files watch sb_...:data",
	}
	var user string
	cmd.PersistentFlags().StringVarP(&user, "user", "u", "", "user to act as in the sandbox (default user, or root where there is none)")
	cmd.AddCommand(a.filesListCmd(&user), a.filesStatCmd(&user), a.filesMakeCmd(&user), a.filesMoveCmd(&user), a.filesRemoveCmd(&user), a.filesWatchCmd(&user))
	return cmd
}

// inSandbox reads a SANDBOX:PATH that a command takes; without a path it is fallback, or wrong where that is empty.
func inSandbox(arg, fallback string) (place, error) {
	p, ok := parsePlace(arg)
	if p.path == "" {
		p.path = fallback
	}
	if !ok || p.path == "" {
		return p, usageError{fmt.Errorf("must be SANDBOX:PATH, like sb_01ARZ3NDEKTSV4RRFFQ69G5FAV:data.csv, got %q", arg)}
	}
	return p, nil
}

func (a *app) filesListCmd(user *string) *cobra.Command {
	q := &guestv1.ListFilesRequest{PageSize: 1000}
	cmd := &cobra.Command{
		Use: "ls SANDBOX:[PATH]", Aliases: []string{"list"}, Short: "List a directory", Args: args("SANDBOX:[PATH]"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := inSandbox(argv[0], ".")
			if err != nil {
				return err
			}
			q.SandboxId, q.Path, q.User = p.sandbox, p.path, *user
			all := &guestv1.ListFilesResponse{}
			for files, err := range page.Each(&q.PageToken, func() (*guestv1.ListFilesResponse, error) { return a.c.files.ListFiles(cmd.Context(), q) }) {
				if err != nil {
					return err
				}
				all.Files = append(all.Files, files.GetFiles()...)
			}
			return a.show(all, func() { a.fileTable(all.GetFiles()) })
		},
	}
	cmd.Flags().Uint32Var(&q.Depth, "depth", 1, "levels to descend, 1 to 16")
	return cmd
}

func (a *app) filesStatCmd(user *string) *cobra.Command {
	return &cobra.Command{
		Use: "stat SANDBOX:PATH", Short: "Describe a file", Args: args("SANDBOX:PATH"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := inSandbox(argv[0], "")
			if err != nil {
				return err
			}
			res, err := a.c.files.StatFile(cmd.Context(), &guestv1.StatFileRequest{SandboxId: p.sandbox, Path: p.path, User: *user})
			if err != nil {
				return err
			}
			return a.show(res.GetFile(), func() { a.fileTable([]*guestv1.File{res.GetFile()}) })
		},
	}
}

// fileTable lists files as ls -l does.
func (a *app) fileTable(list []*guestv1.File) {
	kinds := map[guestv1.FileType]string{guestv1.FileType_FILE_TYPE_REGULAR: "-", guestv1.FileType_FILE_TYPE_DIRECTORY: "d", guestv1.FileType_FILE_TYPE_SYMLINK: "l"}
	var rows [][]string
	for _, f := range list {
		kind, name := kinds[f.GetType()], f.GetPath()
		if kind == "" {
			kind = "?"
		}
		if f.GetSymlinkTarget() != "" {
			name += " -> " + f.GetSymlinkTarget()
		}
		rows = append(rows, []string{fmt.Sprintf("%s%04o", kind, f.GetMode()), f.GetOwner(), f.GetGroup(), fmt.Sprint(f.GetSizeBytes()),
			time.UnixMilli(f.GetModifiedUnixMs()).Format("2006-01-02 15:04"), name})
	}
	a.table("MODE OWNER GROUP SIZE MODIFIED PATH", rows)
}

func (a *app) filesMakeCmd(user *string) *cobra.Command {
	return &cobra.Command{
		Use: "mkdir SANDBOX:PATH...", Short: "Make directories, with their parents", Args: some("SANDBOX:PATH"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.each(argv, func(arg string) error {
				p, err := inSandbox(arg, "")
				if err != nil {
					return err
				}
				res, err := a.c.files.MakeDirectory(cmd.Context(), &guestv1.MakeDirectoryRequest{SandboxId: p.sandbox, Path: p.path, User: *user})
				if err != nil {
					return err
				}
				return a.show(res, func() {})
			})
		},
	}
}

func (a *app) filesMoveCmd(user *string) *cobra.Command {
	q := &guestv1.MoveFileRequest{}
	cmd := &cobra.Command{
		Use: "mv SANDBOX:SOURCE DESTINATION", Short: "Move a file or directory to another path in its sandbox", Args: args("SANDBOX:SOURCE", "DESTINATION"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := inSandbox(argv[0], "")
			if err != nil {
				return err
			}
			to := argv[1]
			if other, ok := parsePlace(to); ok {
				if other.sandbox != p.sandbox {
					return usageError{errors.New("both must be in one sandbox; `covey cp` copies out of one and into another")}
				}
				to = other.path
			}
			q.SandboxId, q.Source, q.Destination, q.User = p.sandbox, p.path, to, *user
			res, err := a.c.files.MoveFile(cmd.Context(), q)
			if err != nil {
				return err
			}
			return a.show(res, func() {})
		},
	}
	cmd.Flags().BoolVarP(&q.Overwrite, "force", "f", false, "replace what is at the destination")
	return cmd
}

func (a *app) filesRemoveCmd(user *string) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use: "rm SANDBOX:PATH...", Short: "Remove files", Args: some("SANDBOX:PATH"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			return a.each(argv, func(arg string) error {
				p, err := inSandbox(arg, "")
				if err != nil {
					return err
				}
				res, err := a.c.files.RemoveFile(cmd.Context(), &guestv1.RemoveFileRequest{SandboxId: p.sandbox, Path: p.path, User: *user, Recursive: recursive})
				if err != nil {
					return err
				}
				return a.show(res, func() {})
			})
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "remove directories with all in them")
	return cmd
}

func (a *app) filesWatchCmd(user *string) *cobra.Command {
	q := &guestv1.WatchFilesRequest{}
	cmd := &cobra.Command{
		Use: "watch SANDBOX:[PATH]", Short: "Show changes of a file or directory as they happen, until interrupted", Args: args("SANDBOX:[PATH]"),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := inSandbox(argv[0], ".")
			if err != nil {
				return err
			}
			q.SandboxId, q.Path, q.User = p.sandbox, p.path, *user
			st, err := a.c.files.WatchFiles(cmd.Context(), q)
			if err != nil {
				return err
			}
			for {
				m, err := st.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if err := a.show(m, func() {
					if m.GetReady() {
						fmt.Fprintf(a.err, "watching %s\n", argv[0])
						return
					}
					fmt.Fprintf(a.out, "%-10s %s\n", strings.ToLower(strings.TrimPrefix(m.GetType().String(), "FILE_EVENT_TYPE_")), m.GetPath())
				}); err != nil {
					return err
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&q.Recursive, "recursive", "r", false, "directories below it too")
	return cmd
}
