// Package suite holds a containerd snapshotter behind a Unix socket to containerd's own test suite.
//
// It needs root, because the suite mounts. Two ways to name the snapshotter, each with its own test:
//
//   - TOWLINE_SNAPSHOTTER_SOCKET: the socket of a running server. The suite goes through containerd's metadata store,
//     as in a real containerd, which keeps its parallel cases apart in namespaces.
//   - TOWLINE_SNAPSHOTTER_SERVER: a program that is started as "PROGRAM ROOT SOCKET", once for each case, and ends with
//     its standard input. The suite speaks to it directly.
//
// TOWLINE_SNAPSHOTTER_MODEL adds the remote protocol: the server behind the socket claims layers that carry modelLabel,
// and shows this directory as their files.
package suite

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	name = "towline"
	// kind is the name under which the suite knows what overlayfs cannot do: renaming a directory of a lower layer.
	kind       = "overlayfs"
	modelLabel = "containerd.io/snapshot/io.towline.test"
)

func connect(socket string) (snapshots.Snapshotter, func() error, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name), conn.Close, nil
}

func fromEnvironment(t *testing.T, key string) string {
	value := os.Getenv(key)
	if value == "" {
		t.Skipf("%s is not set", key)
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	return value
}

func TestDirect(t *testing.T) {
	server := fromEnvironment(t, "TOWLINE_SNAPSHOTTER_SERVER")
	testsuite.SnapshotterSuite(t, kind, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		socket := filepath.Join(root, "s.sock")
		process := exec.Command(server, root, socket)
		process.Stderr = os.Stderr
		input, err := process.StdinPipe()
		if err != nil {
			return nil, nil, err
		}
		if err := process.Start(); err != nil {
			return nil, nil, err
		}
		sn, hangUp, err := connect(socket)
		if err != nil {
			return nil, nil, err
		}
		return sn, func() error {
			hangUp()
			input.Close()
			return process.Wait()
		}, nil
	})
}

// store is a containerd metadata store in front of the snapshotter at socket.
func store(root, socket string) (*metadata.DB, func() error, error) {
	sn, hangUp, err := connect(socket)
	if err != nil {
		return nil, nil, err
	}
	content, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, nil, err
	}
	db, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil)
	if err != nil {
		return nil, nil, err
	}
	mdb := metadata.NewDB(db, content, map[string]snapshots.Snapshotter{name: sn})
	if err := mdb.Init(context.Background()); err != nil {
		return nil, nil, err
	}
	return mdb, func() error {
		db.Close()
		return hangUp()
	}, nil
}

// inNamespace calls its snapshotter in one namespace, whatever the caller's is.
type inNamespace struct {
	snapshots.Snapshotter
	namespace string
}

func (n inNamespace) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, n.namespace)
}

func (n inNamespace) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return n.Snapshotter.Stat(n.in(ctx), key)
}

func (n inNamespace) Update(ctx context.Context, info snapshots.Info, paths ...string) (snapshots.Info, error) {
	return n.Snapshotter.Update(n.in(ctx), info, paths...)
}

func (n inNamespace) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return n.Snapshotter.Usage(n.in(ctx), key)
}

func (n inNamespace) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return n.Snapshotter.Mounts(n.in(ctx), key)
}

func (n inNamespace) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return n.Snapshotter.Prepare(n.in(ctx), key, parent, opts...)
}

func (n inNamespace) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return n.Snapshotter.View(n.in(ctx), key, parent, opts...)
}

func (n inNamespace) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return n.Snapshotter.Commit(n.in(ctx), name, key, opts...)
}

func (n inNamespace) Remove(ctx context.Context, key string) error {
	return n.Snapshotter.Remove(n.in(ctx), key)
}

func (n inNamespace) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return n.Snapshotter.Walk(n.in(ctx), fn, filters...)
}

func TestThroughMetadata(t *testing.T) {
	socket := fromEnvironment(t, "TOWLINE_SNAPSHOTTER_SOCKET")
	mdb, hangUp, err := store(t.TempDir(), socket)
	if err != nil {
		t.Fatal(err)
	}
	var cases atomic.Int64
	run := time.Now().UnixNano()
	testsuite.SnapshotterSuite(t, kind, func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
		namespace := fmt.Sprintf("suite-%d-%d", run, cases.Add(1))
		return inNamespace{mdb.Snapshotter(name), namespace}, nil, nil
	})
	// The cases run in parallel, after this function has returned.
	t.Cleanup(func() { hangUp() })
}

// TestModelLayers pulls and mounts a model image as containerd does, with containerd's own metadata store judging the
// answers.
func TestModelLayers(t *testing.T) {
	socket := fromEnvironment(t, "TOWLINE_SNAPSHOTTER_SOCKET")
	model := fromEnvironment(t, "TOWLINE_SNAPSHOTTER_MODEL")
	mdb, hangUp, err := store(t.TempDir(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp()
	sn := mdb.Snapshotter(name)
	chains := []string{
		fmt.Sprintf("sha256:%064x", time.Now().UnixNano()),
		fmt.Sprintf("sha256:%064x", time.Now().UnixNano()+1),
	}
	for _, namespace := range []string{"models-a", "models-b"} {
		ctx := namespaces.WithNamespace(context.Background(), namespace)
		parent := ""
		for _, chain := range chains {
			labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain, modelLabel: "yes"})
			key := fmt.Sprintf(snapshots.UnpackKeyFormat, "1-x", chain)
			if _, err := sn.Prepare(ctx, key, parent, labels); !errdefs.IsAlreadyExists(err) {
				t.Fatalf("%s: prepare %s: %v", namespace, chain, err)
			}
			info, err := sn.Stat(ctx, chain)
			if err != nil || info.Kind != snapshots.KindCommitted || info.Parent != parent {
				t.Fatalf("%s: stat %s: %+v, %v", namespace, chain, info, err)
			}
			parent = chain
		}
		target := filepath.Join(t.TempDir(), "image-volumes", "sandbox", "image")
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		mounts, err := sn.Prepare(ctx, target, parent)
		if err != nil {
			t.Fatal(err)
		}
		if len(mounts) != 1 || mounts[0].Type != "bind" || mounts[0].Source != model || !mounts[0].ReadOnly() {
			t.Fatalf("mounts of a volume: %+v", mounts)
		}
		if err := mount.All(mounts, target); err != nil {
			t.Fatal(err)
		}
		_, readErr := os.ReadFile(filepath.Join(target, "config.json"))
		writeErr := os.WriteFile(filepath.Join(target, "config.json"), []byte("x"), 0o644)
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Fatal(err)
		}
		if readErr != nil || writeErr == nil {
			t.Fatalf("read: %v, write: %v", readErr, writeErr)
		}
		if _, err := mdb.GarbageCollect(ctx); err != nil {
			t.Fatal(err)
		}
	}
	backend, hangUpBackend, err := connect(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer hangUpBackend()
	for _, chain := range chains {
		filter := fmt.Sprintf("labels.%q==%s", snapshots.LabelSnapshotRef, chain)
		err := backend.Walk(context.Background(), func(_ context.Context, info snapshots.Info) error {
			return fmt.Errorf("%s is left", info.Name)
		}, filter)
		if err != nil {
			t.Errorf("after garbage collection: %v", err)
		}
	}
}
