// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package internal_test checks the architecture that docs/architecture.md
// describes: which package may import which, and what only one of them may do.
package internal_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rows gives each package its row. A package may import only packages of rows
// below its own.
func rows() map[string]int {
	return map[string]int{
		"cli":   6,
		"build": 5,
		"cache": 4, "diff": 4, "export": 4, "frontend": 4, "ops": 4, "solver": 4,
		"registry": 3, "sandbox": 3, "source": 3,
		"keychain": 2, "layer": 2,
		"store": 1, "tree": 1,
		"git": 0, "gz": 0, "image": 0, "progress": 0, "tandem": 0,
	}
}

// exceptions are imports that a row would forbid, each with its reason.
func exceptions() map[[2]string]string {
	return map[[2]string]string{}
}

// source is one Go file of the module.
type source struct {
	path   string // relative to the module, with slashes
	pkg    string // "cli" for internal/cli and below, "cmd" for programs, "" elsewhere
	isTest bool
	file   *ast.File
	fset   *token.FileSet
}

func (s source) at(n ast.Node) string {
	return s.path + ":" + strconv.Itoa(s.fset.Position(n.Pos()).Line)
}

// sources parses all files of the module. It reads them itself: a test that
// runs "go list" would be served stale from the test cache.
func sources(t *testing.T) []source {
	t.Helper()
	var list []source
	fset := token.NewFileSet()
	for _, top := range []string{"internal", "cmd"} {
		root := filepath.Join("..", top)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && d.Name() == "testdata":
				return filepath.SkipDir
			case d.IsDir() || filepath.Ext(path) != ".go":
				return nil
			}
			file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			rel := strings.TrimPrefix(filepath.ToSlash(path), "../")
			list = append(list, source{rel, packageOf(rel), strings.HasSuffix(path, "_test.go"), file, fset})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

func packageOf(path string) string {
	parts := strings.Split(path, "/")
	switch {
	case parts[0] == "cmd":
		return "cmd"
	case parts[0] == "internal" && len(parts) > 2:
		return parts[1]
	}
	return ""
}

func TestImports(t *testing.T) {
	t.Parallel()
	row, allowed := rows(), exceptions()
	used := map[[2]string]bool{}
	for _, s := range sources(t) {
		if s.pkg == "" {
			continue
		}
		if _, ok := row[s.pkg]; !ok && s.pkg != "cmd" {
			t.Errorf("%s: package %s has no row in the table", s.path, s.pkg)
			continue
		}
		for _, spec := range s.file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			rest, ok := strings.CutPrefix(path, "hako/internal/")
			if !ok {
				continue
			}
			target, _, _ := strings.Cut(rest, "/")
			edge := [2]string{s.pkg, target}
			used[edge] = true
			if target == s.pkg || s.pkg == "cmd" || allowed[edge] != "" {
				continue
			}
			// Tests may join what the program joins one row up.
			if s.isTest && row[target] <= row[s.pkg] {
				continue
			}
			if row[target] >= row[s.pkg] {
				t.Errorf("%s: %s (row %d) imports %s (row %d)", s.at(spec), s.pkg, row[s.pkg], target, row[target])
			}
		}
	}
	for edge, reason := range allowed {
		if !used[edge] || reason == "" {
			t.Errorf("exception %s imports %s is not needed, or has no reason", edge[0], edge[1])
		}
	}
}

func TestPackageDocs(t *testing.T) {
	t.Parallel()
	docs := map[string][]string{}
	for _, s := range sources(t) {
		if s.isTest {
			continue
		}
		dir := filepath.ToSlash(filepath.Dir(s.path))
		docs[dir] = append(docs[dir], nil...)
		if s.file.Doc != nil && strings.TrimSpace(s.file.Doc.Text()) != "" {
			docs[dir] = append(docs[dir], s.path)
		}
	}
	for dir, files := range docs {
		if len(files) != 1 {
			t.Errorf("%s has %d package comments, in %v; want one", dir, len(files), files)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	const want = "// Copyright The hako authors.\n// SPDX-License-Identifier: Apache-2.0"
	for _, s := range sources(t) {
		var got []string
		if len(s.file.Comments) > 0 {
			for _, c := range s.file.Comments[0].List {
				got = append(got, c.Text)
			}
		}
		header := strings.Join(got[:min(2, len(got))], "\n")
		if header != want || s.fset.Position(s.file.Comments[0].Pos()).Line != 1 && !ast.IsGenerated(s.file) {
			t.Errorf("%s: does not begin with the two lines of the licence header", s.path)
		}
	}
}

// forbidden calls, by package path and function, and who may make them.
func forbidden() map[string][]string {
	env := []string{"cli", "cmd"}
	exit := []string{"cmd"}
	return map[string][]string{
		"os.Getenv": env, "os.LookupEnv": env, "os.Environ": env, "os.ExpandEnv": env, "os.Setenv": nil,
		"os.Exit": exit, "log.Fatal": exit, "log.Fatalf": exit, "log.Fatalln": exit,
		"fmt.Print": nil, "fmt.Printf": nil, "fmt.Println": nil,
	}
}

func TestForbiddenCalls(t *testing.T) {
	t.Parallel()
	calls := forbidden()
	for _, s := range sources(t) {
		if s.isTest {
			continue
		}
		names := importNames(s.file)
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			id, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			name := names[id.Name] + "." + sel.Sel.Name
			// Re-exec entry points run as programs of their own.
			if who, found := calls[name]; found && !slices.Contains(who, s.pkg) && !isEntryPoint(s.path, name) {
				t.Errorf("%s: %s may be used only by %v", s.at(n), name, who)
			}
			return true
		})
	}
}

// isEntryPoint reports whether the file is one that runs as another process: it
// exits by itself, being its own main.
func isEntryPoint(path, call string) bool {
	return (call == "os.Exit" || call == "os.Environ") && slices.Contains([]string{"internal/sandbox/init.go", "internal/sandbox/init_linux.go"}, path)
}

func importNames(f *ast.File) map[string]string {
	names := map[string]string{}
	for _, spec := range f.Imports {
		path, _ := strconv.Unquote(spec.Path.Value)
		name := path[strings.LastIndex(path, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = path
	}
	return names
}

func TestNoInit(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		for _, decl := range s.file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init functions hide an order; call what is needed", s.at(f))
			}
		}
	}
}

// The clouds' libraries read the environment and files by themselves, so only those
// packages may use them that are asked before a root is installed.
func TestCloudLibraries(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		for _, spec := range s.file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			isCloud := slices.ContainsFunc([]string{"github.com/aws/", "github.com/Azure/", "cloud.google.com/", "golang.org/x/oauth2"}, func(p string) bool {
				return strings.HasPrefix(path, p)
			})
			if isCloud && !strings.HasPrefix(s.path, "internal/source/bucket/") && s.pkg != "keychain" {
				t.Errorf("%s: only source/bucket and keychain use the clouds' libraries", s.at(spec))
			}
		}
	}
}

// Whiteouts are a matter of layer tars, so of package layer alone.
func TestWhiteoutsOnlyInLayer(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.isTest || s.pkg == "layer" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && strings.Contains(lit.Value, ".wh.") {
				t.Errorf("%s: only package layer knows .wh. names", s.at(lit))
			}
			return true
		})
	}
}
