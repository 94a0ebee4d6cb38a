// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azure "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"hako/test/gitserver"
)

// A kanikoExample is an example of kaniko's README: what it shows, as a script of
// bash that runs in a directory with a Dockerfile. Names, paths and credentials
// are put in where the README has placeholders; images and hosts have the names
// that they have there.
type kanikoExample struct {
	name   string
	script string
	// image is what it pushes; by whom, if it is not the machine's account.
	image, by string
	// built is a file of the image, FILE=CONTENT; made=a without.
	built string
	check func(t *testing.T, k *kanikoRun, out string)
	// fails is in the output of what has to fail.
	fails string
	// elsewhere is the file of the test and its name, where there is what it needs:
	// make test-runtimes runs it.
	elsewhere string
}

const (
	kanikoDockerfile = "FROM alpine AS first\nARG MY_VAR=a\nCOPY a.txt /\nRUN echo \"$MY_VAR\" > /made\nFROM first\nRUN cat /proc/sys/kernel/random/uuid > /once\n"
	runWorkspace     = "docker run -v $(pwd):/workspace "
	latest           = "gcr.io/kaniko-project/executor:latest "
	configJSON       = "cat > config.json <<'EOF'\n"
	withConfig       = "EOF\ndocker run -ti --rm -v `pwd`:/workspace -v `pwd`/config.json:/kaniko/.docker/config.json:ro "
)

// kanikoExamples is the list of all that kaniko's README shows how to do, with
// where each is tested.
func kanikoExamples() []kanikoExample {
	return []kanikoExample{
		{name: "local", image: "gcr.io/my-repo/local:latest", script: runWorkspace + latest + "--dockerfile=Dockerfile --context=dir:///workspace/ --destination=gcr.io/my-repo/local"},
		{name: "tar", image: "gcr.io/my-repo/tar:1", script: "cd ..; tar -C context -zcvf context.tar.gz .\ndocker run -v $(pwd):/path/to " + latest +
			"--dockerfile=Dockerfile --context=tar:///path/to/context.tar.gz --destination=gcr.io/my-repo/tar:1"},
		{name: "stdin", image: "gcr.io/my-repo/stdin:latest", built: "said=created from standard input\n", script: `echo -e 'FROM alpine \nRUN echo "created from standard input" > /said' > Dockerfile; tar -cf - Dockerfile | gzip -9 | docker run ` +
			"--interactive -v $(pwd):/workspace " + latest + "--context tar://stdin --destination=gcr.io/my-repo/stdin"},
		{name: "GCS", image: "gcr.io/my-repo/gcs:latest", script: "docker run -e STORAGE_EMULATOR_HOST=$GCS " + latest +
			"--dockerfile=Dockerfile --context=gs://kaniko-bucket/path/to/context.tar.gz --destination=gcr.io/my-repo/gcs"},
		{name: "S3", image: "gcr.io/my-repo/s3:latest", script: "docker run -e S3_ENDPOINT=http://$S3 -e S3_FORCE_PATH_STYLE=true -v $HOME/.aws:/root/.aws:ro " + latest +
			"--dockerfile=Dockerfile --context=s3://kaniko-bucket/path/to/context.tar.gz --destination=gcr.io/my-repo/s3"},
		{name: "Azure", image: "gcr.io/my-repo/azure:latest", script: "docker run -e AZURE_STORAGE_ACCESS_KEY=" + azureKey + " " + latest +
			"--dockerfile=Dockerfile --context=https://" + azureHost + "/container/path/to/context.tar.gz --destination=gcr.io/my-repo/azure"},
		{name: "git private", image: "gcr.io/my-repo/git:latest", script: "docker run -e GIT_TOKEN=" + gitToken + " " + latest +
			"--context=git://github.com/acme/myproject.git#refs/heads/mybranch#$COMMIT --destination=gcr.io/my-repo/git"},
		// The Pod of "Pushing to Amazon ECR": config.json in a ConfigMap, .aws in a Secret.
		{name: "ConfigMap", image: ecrHost + "/configmap:my-tag", by: "AWS", script: volumeLinks("docker-config", `{"credHelpers":{"`+ecrHost+`":"ecr-login"}}`, "config.json") +
			"docker run -e S3_ENDPOINT=http://$S3 -e S3_FORCE_PATH_STYLE=true -v $HOME/docker-config:/kaniko/.docker/:ro -v $HOME/.aws:/root/.aws/:ro " + latest +
			"--dockerfile=Dockerfile --context=s3://kaniko-bucket/path/to/context.tar.gz --destination=" + ecrHost + "/configmap:my-tag"},
		// run_in_docker.sh
		{name: "Docker", image: "gcr.io/my-repo/docker:latest", by: "user", script: "dockerfile=Dockerfile context=$(pwd) destination=gcr.io/my-repo/docker\n" +
			"docker run -v $HOME/.config/gcloud:/root/.config/gcloud -v ${context}:/workspace " + latest + "--dockerfile ${dockerfile} --destination ${destination} --context dir:///workspace/"},
		{name: "gVisor", elsewhere: "test/gvisor/gvisor_test.go TestGVisor"},
		{name: "Kubernetes", elsewhere: "test/kubernetes/pods_test.go TestPods"},
		// A step has the sources in /workspace; the builder reads what was pushed.
		{name: "Cloud Build", image: "gcr.io/my-project/image:tag", check: checkBuilderOutput, script: "mkdir ../outputs\n" +
			"docker run -v $(pwd):/workspace -w /workspace -v $(realpath ../outputs):/builder/outputs -e BUILDER_OUTPUT=/builder/outputs " + latest +
			"--dockerfile=Dockerfile --context=dir:///workspace --destination=gcr.io/my-project/image:tag"},
		{name: "layer cache flags", image: "gcr.io/my-repo/cached:1", check: checkCached, script: "for n in 1 2; do\n" +
			runWorkspace + latest + "--cache=true --cache-repo=gcr.io/my-repo/cache --cache-copy-layers --cache-run-layers --cache-ttl=6h --destination=gcr.io/my-repo/cached:$n\ndone"},
		{name: "base cache directory", image: "gcr.io/my-repo/warmed:latest", built: "made=b\n", check: checkWarmed, script: "echo 'FROM busybox\nRUN echo b > /made' > Dockerfile\n" +
			runWorkspace + "gcr.io/kaniko-project/warmer:latest --cache-dir=/workspace/cache --image=busybox --image=alpine\n" +
			runWorkspace + latest + "--cache=true --cache-repo=gcr.io/my-repo/warmed/cache --cache-dir=/workspace/cache --destination=gcr.io/my-repo/warmed"},
		{name: "Docker Hub config", image: "index.docker.io/library/yourimagename:latest", by: "USER", script: configJSON +
			`{"auths":{"https://index.docker.io/v1/":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("USER:PASSWORD")) + "\"}}}\n" + withConfig + latest + "--dockerfile=Dockerfile --destination=yourimagename"},
		{name: "ECR", image: ecrHost + "/my-repository:my-tag", by: "AWS", script: configJSON + "{ \"credsStore\": \"ecr-login\" }\n" + withConfig +
			"-v $HOME/.aws:/root/.aws:ro " + latest + "--dockerfile=Dockerfile --destination=" + ecrHost + "/my-repository:my-tag"},
		{name: "ACR", image: acrHost + "/my-repository:my-tag", by: "client", script: configJSON + `{ "credHelpers": { "` + acrHost + "\": \"acr-env\" } }\n" + withConfig +
			"-e AZURE_TENANT_ID=tenant -e AZURE_CLIENT_ID=client -e AZURE_CLIENT_SECRET=planted-secret " + latest + "--dockerfile=Dockerfile --destination=" + acrHost + "/my-repository:my-tag"},
		{name: "ACR by its name", image: acrHost + "/found:1", by: "client", script: runWorkspace + "-e AZURE_TENANT_ID=tenant -e AZURE_CLIENT_ID=client -e AZURE_CLIENT_SECRET=planted-secret " + latest +
			"--dockerfile=Dockerfile --destination=" + acrHost + "/found:1"},
		{name: "ACR by a file", image: acrHost + "/file:1", by: "client", script: "echo '{\"tenantId\":\"tenant\",\"aadClientId\":\"client\",\"aadClientSecret\":\"planted-secret\"}' > ../azure.json\n" +
			runWorkspace + "-v $(realpath ../azure.json):/secret/azure.json:ro " + latest + "--azure-container-registry-config=/secret/azure.json --destination=" + acrHost + "/file:1"},
		{name: "GCR", image: "gcr.io/my-repo/key:latest", by: "account", script: "docker run -ti --rm -e GOOGLE_APPLICATION_CREDENTIALS=/kaniko/config.json -v `pwd`:/workspace -v $HOME/kaniko-secret.json:/kaniko/config.json:ro " +
			latest + "--dockerfile=Dockerfile --destination=gcr.io/my-repo/key"},
		{name: "Artifact Registry", image: "us-docker.pkg.dev/my-project/my-repo/app:1", script: runWorkspace + latest + "--destination=us-docker.pkg.dev/my-project/my-repo/app:1"},
		{name: "digest file", image: "gcr.io/my-repo/digest:latest", check: checkDigest, script: "touch ../termination-log; docker run -v $(pwd):/workspace -v $(realpath ../termination-log):/dev/termination-log " + latest +
			"--destination=gcr.io/my-repo/digest --digest-file=/dev/termination-log"},
		{name: "tar path", check: checkTar, script: runWorkspace + latest + "--destination=gcr.io/my-repo/tarred --no-push --tar-path=/workspace/image.tar"},
		{name: "OCI layout", image: "gcr.io/my-repo/layout:latest", check: checkLayout, script: runWorkspace + latest + "--destination=gcr.io/my-repo/layout --oci-layout-path=/workspace/layout"},
		{name: "debug shell", image: "gcr.io/my-repo/shell:latest", script: "echo '/kaniko/executor --destination=gcr.io/my-repo/shell && ls /busybox/sh' |\n" +
			"docker run -it --entrypoint=/busybox/sh -v $(pwd):/workspace gcr.io/kaniko-project/executor:debug"},
		{name: "target", image: "gcr.io/my-repo/target:latest", check: checkTarget, script: runWorkspace + latest + "--destination=gcr.io/my-repo/target --target=first"},
		{name: "build args", image: "gcr.io/my-repo/args:latest", built: "made='value with spaces'\n", script: "export IFS=''\n" +
			"docker run -v $(pwd):/workspace " + latest + `--build-arg "MY_VAR='value with spaces'" --destination=gcr.io/my-repo/args`},
		// The credentials of these are looked at, so they are those of the rows above.
		{name: "Azure, another key", fails: "the account does not accept AZURE_STORAGE_ACCESS_KEY", script: "docker run -e AZURE_STORAGE_ACCESS_KEY=b3RoZXI= " + latest +
			"--context=https://" + azureHost + "/container/path/to/context.tar.gz --destination=gcr.io/my-repo/none"},
		{name: "S3, another key", fails: "does not accept these keys", script: "docker run -e S3_ENDPOINT=http://$S3 -e S3_FORCE_PATH_STYLE=true -e AWS_ACCESS_KEY_ID=AKIAPLANTED -e AWS_SECRET_ACCESS_KEY=other " + latest +
			"--context=s3://kaniko-bucket/path/to/context.tar.gz --destination=gcr.io/my-repo/none"},
		{name: "git private, another token", fails: "github.com: 401", script: "docker run -e GIT_TOKEN=other " + latest + "--context=git://github.com/acme/myproject.git#refs/heads/mybranch --destination=gcr.io/my-repo/none"},
		// For the base or for the destination, whichever is asked for first.
		{name: "Docker Hub, another password", fails: "that account  is not known to docker.io with that password", script: configJSON +
			`{"auths":{"https://index.docker.io/v1/":{"username":"USER","password":"planted-other"}}}` + "\n" + withConfig + latest + "--destination=yourimagename"},
		{name: "ECR, another key", fails: "ECR answered 400 UnrecognizedClientException", script: runWorkspace + "-e AWS_ACCESS_KEY_ID=AKIAOTHER -e AWS_SECRET_ACCESS_KEY=planted-other " + latest + "--destination=" + ecrHost + "/none:1"},
		{name: "ACR, another secret", fails: "with AZURE_CLIENT_SECRET of the client client: Microsoft Entra answered 401 invalid_client", script: runWorkspace +
			"-e AZURE_TENANT_ID=tenant -e AZURE_CLIENT_ID=client -e AZURE_CLIENT_SECRET=planted-other " + latest + "--destination=" + acrHost + "/none:1"},
		{name: "ACR by a file without an identity", fails: " try     set tenantId, aadClientId and aadClientSecret in it", script: "echo '{\"cloud\":\"AzurePublicCloud\"}' > ../azure.json\n" +
			runWorkspace + "-v $(realpath ../azure.json):/secret/azure.json:ro " + latest + "--azure-container-registry-config=/secret/azure.json --destination=" + acrHost + "/none:1"},
	}
}

// volumeLinks makes a directory in $HOME as the kubelet shows a ConfigMap: links to links.
func volumeLinks(dir, text, file string) string {
	return "mkdir -p $HOME/" + dir + "/..1; ln -s ..1 $HOME/" + dir + "/..data; ln -s ..data/" + file + " $HOME/" + dir + "/" + file +
		"; echo '" + text + "' > $HOME/" + dir + "/..1/" + file + "\n"
}

// A kanikoRun is where the examples run.
type kanikoRun struct {
	*ownImages
	*clouds
	path, home string
	env        []string
	dir        string // of one example
}

// TestKanikoExamples runs what kaniko's README shows, with only the image changed
// and the hosts led elsewhere, and looks at the images that come out.
func TestKanikoExamples(t *testing.T) {
	im := buildImages(t)
	k := &kanikoRun{ownImages: im, clouds: im.clouds(t), path: t.TempDir(), home: t.TempDir()}
	images := map[string]string{
		strings.TrimSpace(latest):              im.load(t, "executor"),
		"gcr.io/kaniko-project/executor:debug": im.load(t, "debug"),
		"gcr.io/kaniko-project/warmer:latest":  im.load(t, "warmer"),
	}
	if err := im.pod.Docker(k.path, images, k.podmanArgs()...); err != nil {
		t.Fatal(err)
	}
	k.setUp(t)
	t.Run("each", func(t *testing.T) {
		for _, e := range kanikoExamples() {
			t.Run(e.name, func(t *testing.T) {
				if e.elsewhere != "" {
					file, test, _ := strings.Cut(e.elsewhere, " ")
					if !strings.Contains(read(t, "../..", file), "func "+test+"(") {
						t.Errorf("%s has no %s", file, test)
					}
					return
				}
				t.Parallel()
				one := *k
				one.run(t, e)
			})
		}
	})
}

// setUp gives the servers what the examples need, and $HOME its credentials.
func (k *kanikoRun) setUp(t *testing.T) {
	t.Helper()
	for to, from := range map[string]string{"alpine": "busybox", "busybox": "usrmerge"} {
		img, err := remote.Image(reference(t, k.Registry+"/"+from), remote.WithContext(t.Context()))
		if err == nil {
			err = remote.Write(reference(t, k.registry+"/library/"+to), img, remote.WithContext(t.Context()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	buckets, bctx := t.TempDir(), k.files(t, map[string]string{"Dockerfile": kanikoDockerfile, "a.txt": "a\n"})
	archive := filepath.Join(buckets, "kaniko-bucket", "path", "to", "context.tar.gz")
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", bctx, "-zcf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	k.uploadToAzure(t, archive)
	gcs, err := k.Serve(t.Context(), "fake-gcs-server", nil, func(port string) []string {
		return []string{"-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory", "-data", buckets, "-log-level", "error"}
	})
	if err != nil {
		t.Fatal(err)
	}
	s3, err := k.Serve(t.Context(), "versitygw", []string{"ROOT_ACCESS_KEY=AKIAPLANTED", "ROOT_SECRET_KEY=planted-aws"}, func(port string) []string {
		return []string{"--quiet", "--port", "127.0.0.1:" + port, "posix", buckets}
	})
	if err != nil {
		t.Fatal(err)
	}
	commit, err := gitserver.Script(t.Context(), k.git, "git init -q --bare acme/myproject.git; git init -q -b mybranch w; cp "+bctx+"/* w; cd w; git add .; git commit -qm 1; git rev-parse HEAD; "+
		"git push -q ../acme/myproject.git mybranch; rm a.txt; git commit -qam 2; git push -q ../acme/myproject.git mybranch")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		".aws/credentials":   "[default]\naws_access_key_id = AKIAPLANTED\naws_secret_access_key = planted-aws\n",
		".aws/config":        "[default]\nregion = us-east-1\n",
		"kaniko-secret.json": serviceAccount(t),
		".config/gcloud/application_default_credentials.json": `{"type":"authorized_user","client_id":"id","client_secret":"planted","refresh_token":"planted-user"}`,
	} {
		path := filepath.Join(k.home, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	k.env = []string{"HOME=" + k.home, "PATH=" + k.path + ":" + os.Getenv("PATH"), "GCS=" + gcs, "S3=" + strings.Replace(s3, "127.0.0.1", "localhost", 1), "COMMIT=" + commit}
}

func (k *kanikoRun) uploadToAzure(t *testing.T, archive string) {
	t.Helper()
	key, err := azure.NewSharedKeyCredential("myaccount", azureKey)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", k.ip+":443")
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	defer client.CloseIdleConnections()
	c, err := azure.NewClientWithSharedKeyCredential("https://"+azureHost+"/container", key, &azure.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: client}})
	if err == nil {
		_, err = c.Create(t.Context(), nil)
	}
	data, readErr := os.ReadFile(archive)
	if err == nil && readErr == nil {
		_, err = c.NewBlockBlobClient("path/to/context.tar.gz").UploadBuffer(t.Context(), data, nil)
	}
	if err := errors.Join(err, readErr); err != nil {
		t.Fatal(err)
	}
}

// serviceAccount is a key file as Google hands them out.
func serviceAccount(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "a@b.iam.gserviceaccount.com", "private_key_id": "id", "token_uri": "https://oauth2.googleapis.com/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func reference(t *testing.T, s string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// run runs one example.
func (k *kanikoRun) run(t *testing.T, e kanikoExample) {
	k.dir = t.TempDir()
	bctx := filepath.Join(k.dir, "context")
	if err := errors.Join(os.Mkdir(bctx, 0o755), os.WriteFile(filepath.Join(bctx, "Dockerfile"), []byte(kanikoDockerfile), 0o644), os.WriteFile(filepath.Join(bctx, "a.txt"), []byte("a\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", e.script)
	cmd.Dir, cmd.Env = bctx, append(os.Environ(), k.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if e.fails != "" {
		if err == nil || !strings.Contains(out.String(), e.fails) || strings.Contains(out.String(), "planted") {
			t.Errorf("%v, want an error with %q and nothing secret:\n%s", err, e.fails, out.String())
		}
		return
	}
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, e.script, out.String())
	}
	if e.image != "" {
		k.pushedBy(t, e)
	}
	if e.check != nil {
		e.check(t, k, out.String())
	}
}

// pushedBy wants the image in its registry, by the right account, with the right
// content.
func (k *kanikoRun) pushedBy(t *testing.T, e kanikoExample) {
	t.Helper()
	by, built := e.by, e.built
	if by == "" {
		by = "machine"
	}
	if built == "" {
		built = "made=a\n"
	}
	if got := k.by(e.image); got != by {
		t.Errorf("%s was pushed by %q, want %s", e.image, got, by)
	}
	file, want, _ := strings.Cut(built, "=")
	if got := k.image(t, e.image)[file]; got != want {
		t.Errorf("%s has %s with %q, want %q", e.image, file, got, want)
	}
}

// image returns the files of an image that an example pushed.
func (k *kanikoRun) image(t *testing.T, ref string) map[string]string {
	t.Helper()
	_, rest, _ := strings.Cut(ref, "/")
	return k.contents(t, k.registry+"/"+rest)
}

func (k *kanikoRun) digest(t *testing.T, ref string) string {
	t.Helper()
	desc, err := remote.Head(reference(t, k.registry+"/"+ref), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return desc.Digest.String()
}

func checkBuilderOutput(t *testing.T, k *kanikoRun, _ string) {
	want := `{"name":"gcr.io/my-project/image:tag","digest":"` + k.digest(t, "my-project/image:tag") + "\"}\n"
	if got := read(t, k.dir, "outputs/images"); got != want {
		t.Errorf("images is %q, want %q", got, want)
	}
}

func checkCached(t *testing.T, k *kanikoRun, out string) {
	first, second := k.image(t, "gcr.io/my-repo/cached:1"), k.image(t, "gcr.io/my-repo/cached:2")
	if first["once"] == "" || first["once"] != second["once"] {
		t.Errorf("the second build ran what the first had: %q, %q\n%s", first["once"], second["once"], out)
	}
	if k.by("gcr.io/my-repo/cached:2") != "machine" {
		t.Error("the second build pushed nothing")
	}
}

// Nobody else has this base image: what is downloaded once was so by the warmer.
func checkWarmed(t *testing.T, k *kanikoRun, out string) {
	blobs := k.blobs("index.docker.io/library/busybox")
	if n := len(blobs); n < 2 || n != len(slices.Compact(blobs)) {
		t.Errorf("blobs %q were downloaded, want each once:\n%s", blobs, out)
	}
}

func checkDigest(t *testing.T, k *kanikoRun, _ string) {
	if got, want := read(t, k.dir, "termination-log"), k.digest(t, "my-repo/digest"); got != want {
		t.Errorf("the file has %q, want %q", got, want)
	}
}

func checkTar(t *testing.T, k *kanikoRun, _ string) {
	tag, err := name.NewTag("gcr.io/my-repo/tarred")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(filepath.Join(k.dir, "context", "image.tar"), &tag)
	if err != nil {
		t.Fatal(err)
	}
	if got := smallFiles(t, img)["made"]; got != "a\n" {
		t.Errorf("the archive's image has made with %q", got)
	}
	if by := k.by("gcr.io/my-repo/tarred:latest"); by != "" {
		t.Error("it was pushed by " + by)
	}
}

func checkLayout(t *testing.T, k *kanikoRun, _ string) {
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal([]byte(read(t, k.dir, "context/layout/index.json")), &index); err != nil {
		t.Fatal(err)
	}
	if want := k.digest(t, "my-repo/layout"); len(index.Manifests) != 1 || index.Manifests[0].Digest != want {
		t.Errorf("the layout has %v, want %s", index.Manifests, want)
	}
}

func checkTarget(t *testing.T, k *kanikoRun, _ string) {
	if k.image(t, "gcr.io/my-repo/target:latest")["once"] != "" {
		t.Error("the image has what a later stage makes")
	}
}
