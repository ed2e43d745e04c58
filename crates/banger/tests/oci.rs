//! Images pulled from a registry: Debian's docker-registry, in a network namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "a test")]

use banger::image::build::{self, Origin};
use banger::image::error::{Error, Kind};
use banger::image::oci::{self, Platform, Pulled, Reference};
use banger::image::progress::Unwatched;
use banger::image::store::Store;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const REGISTRY: &str = "http://127.0.0.1:5000";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn said(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The registry, and a folder of its own.
struct World {
    folder: tempfile::TempDir,
    registry: Child,
}

impl World {
    fn make() -> World {
        said(Command::new("ip").args(["link", "set", "lo", "up"]));
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("registry");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"127.0.0.1:5000\"}}\n",
            at.display()
        );
        fs::write(folder.path().join("config.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(folder.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let world = World { folder, registry: command.spawn().expect("docker-registry, of Debian's package") };
        let begun = Instant::now();
        while std::net::TcpStream::connect("127.0.0.1:5000").is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the registry doesn't listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        world
    }

    fn curl(&self, arguments: &[&str]) -> String {
        said(Command::new("curl").args(["--silent", "--show-error", "--fail"]).args(arguments))
    }

    /// Puts a blob into the registry; its descriptor.
    fn push(&self, file: &Path, kind: &str) -> Value {
        let sum = said(Command::new("sha256sum").arg(file));
        let digest = format!("sha256:{}", sum.split_whitespace().next().unwrap());
        let begin = self.curl(&["-X", "POST", "-D", "-", &format!("{REGISTRY}/v2/a/b/blobs/uploads/")]);
        let place = begin.lines().find_map(|l| l.strip_prefix("Location: ")).unwrap().trim();
        let body = format!("@{}", file.display());
        self.curl(&[
            "-X",
            "PUT",
            "-H",
            "Content-Type: application/octet-stream",
            "--data-binary",
            &body,
            &format!("{place}&digest={digest}"),
        ]);
        json!({"mediaType": kind, "digest": digest, "size": fs::metadata(file).unwrap().len()})
    }

    /// Puts a manifest under a tag; its descriptor.
    fn tag(&self, manifest: &Value, kind: &str, tag: &str) -> Value {
        let file = self.folder.path().join("manifest");
        fs::write(&file, manifest.to_string()).unwrap();
        let (header, body) = (format!("Content-Type: {kind}"), format!("@{}", file.display()));
        self.curl(&["-X", "PUT", "-H", &header, "--data-binary", &body, &format!("{REGISTRY}/v2/a/b/manifests/{tag}")]);
        let sum = said(Command::new("sha256sum").arg(&file));
        let digest = format!("sha256:{}", sum.split_whitespace().next().unwrap());
        json!({"mediaType": kind, "digest": digest, "size": manifest.to_string().len()})
    }

    /// A layer with these files.
    fn layer(&self, files: &[(&str, &str)]) -> PathBuf {
        let tree = tempfile::tempdir_in(self.folder.path()).unwrap();
        for (name, content) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let layer = tree.path().with_extension("tar.gz");
        let tar = ["--owner=0", "--group=0", "--mtime=@5", "--sort=name", "-czf"];
        said(Command::new("tar").arg("-C").arg(tree.path()).args(tar).arg(&layer).arg("."));
        layer
    }

    /// Where the registry keeps a blob.
    fn kept(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let blobs = self.folder.path().join("registry/docker/registry/v2/blobs/sha256");
        blobs.join(&digest[..2]).join(digest).join("data")
    }

    fn pull(&self, reference: &str, platform: &str, store: &Store) -> Result<Pulled, Error> {
        let reference = Reference::parse(&format!("127.0.0.1:5000/{reference}")).unwrap();
        let work = store.work(0)?;
        oci::pull(&reference, &Platform::parse(platform).unwrap(), store, &work, &Unwatched)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.registry.kill();
        let _ = self.registry.wait();
    }
}

#[test]
fn an_image_comes_layer_by_layer_and_nothing_that_is_not_its_digests() {
    const INSIDE: &str = "BANGER_TEST_INSIDE";
    let test = "an_image_comes_layer_by_layer_and_nothing_that_is_not_its_digests";
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--user", "--map-root-user", "--net", "--"]).arg(std::env::current_exe().unwrap());
        let out = said(again.args(["--exact", test, "--nocapture"]).env(INSIDE, "1"));
        assert!(out.contains("1 passed"), "{out}");
        return;
    }
    let world = World::make();
    let config = world.folder.path().join("config");
    fs::write(&config, "{}").unwrap();
    let config = world.push(&config, "application/vnd.oci.image.config.v1+json");
    let lower = world.push(&world.layer(&[("etc/a", "lower"), ("etc/b", "lower")]), LAYER);
    let upper = world.push(&world.layer(&[("etc/.wh.a", ""), ("etc/b", "upper")]), LAYER);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [lower, upper]});
    let mut found = world.tag(&manifest, MANIFEST, "one");
    found["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [found]});
    world.tag(&index, INDEX, "many");

    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    for reference in ["a/b:many", "a/b:one", &format!("a/b@{}", found["digest"].as_str().unwrap())] {
        let pulled = world.pull(reference, "linux/amd64", &store).unwrap();
        assert_eq!(
            (pulled.layers.len(), pulled.digest.as_str()),
            (2, found["digest"].as_str().unwrap()),
            "{reference}"
        );
        let work = store.work(0).unwrap();
        let image = build::import(pulled.layers, 64 << 20, Origin::Layers, &work, &Unwatched).unwrap();
        let debugfs = |request: &str| {
            let path = "/usr/sbin:/sbin:/usr/bin:/bin";
            said(Command::new("debugfs").env("PATH", path).args(["-R", request]).arg(&image))
        };
        assert_eq!((debugfs("cat /etc/b"), debugfs("cat /etc/a")), ("upper".into(), String::new()), "{reference}");
        oci::forget(&pulled.paths);
    }
    assert_eq!(fs::read_dir(state.path().join("layers")).unwrap().count(), 0);
    let failed = |reference: &str, platform: &str| world.pull(reference, platform, &store).unwrap_err();
    assert_eq!(failed("a/b:none", "linux/amd64").kind, Kind::Request);
    assert!(failed("a/b:many", "linux/riscv64").why.unwrap().contains("linux/amd64"));

    // Cut off behind the first layer; the next try has that already.
    let (kept, aside) = (world.kept(&upper), world.folder.path().join("aside"));
    fs::rename(&kept, &aside).unwrap();
    failed("a/b:one", "linux/amd64");
    fs::rename(&aside, &kept).unwrap();
    let pulled = world.pull("a/b:one", "linux/amd64", &store).unwrap();
    assert_eq!(pulled.kept, 1);
    // What is here is looked at again, and what isn't right is fetched.
    fs::write(&pulled.paths[0], "something else").unwrap();
    let pulled = world.pull("a/b:one", "linux/amd64", &store).unwrap();
    assert_eq!(pulled.kept, 1);
    oci::forget(&pulled.paths);

    // A registry that gives other bytes: of the same length, and more of them.
    let right = fs::read(&kept).unwrap();
    let mut wrong = right.clone();
    wrong[20] ^= 1;
    fs::write(&kept, &wrong).unwrap();
    let error = failed("a/b:one", "linux/amd64");
    assert!(error.kind == Kind::Input && error.what.contains("not what its digest says"), "{error}");
    fs::write(&kept, [right, vec![0; 1 << 20]].concat()).unwrap();
    let error = failed("a/b:one", "linux/amd64");
    assert!(matches!(error.kind, Kind::Input | Kind::Mirror), "{error}");
    assert_eq!(fs::read_dir(state.path().join("making")).unwrap().count(), 0);
    drop(world);
    let gone = Reference::parse("127.0.0.1:5000/a/b:one").unwrap();
    let work = store.work(0).unwrap();
    let error = oci::pull(&gone, &Platform::here(), &store, &work, &Unwatched).unwrap_err();
    assert!(error.kind == Kind::Mirror && error.what.contains("can't be fetched"), "{error}");
}

/// A registry that wants a token, as the large ones do: who asks without one is told where there are some.
fn wants_a_token(listener: &std::net::TcpListener, asked: &std::sync::Mutex<Vec<String>>) {
    use std::io::{BufRead, BufReader, Write};
    let at = listener.local_addr().unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let has_token = head.iter().any(|line| line.eq_ignore_ascii_case("authorization: Bearer t0ken"));
        let (status, header, body) = match head[0].split(' ').nth(1).unwrap() {
            path if path.starts_with("/token?") => ("200 OK", String::new(), r#"{"token":"t0ken"}"#),
            _ if !has_token => {
                let realm = format!("www-authenticate: Bearer realm=\"http://{at}/token\",service=\"a b\"\r\n");
                ("401 Unauthorized", realm, "{}")
            }
            path if path.ends_with("/closed") => ("403 Forbidden", String::new(), "{}"),
            _ => ("200 OK", String::new(), r#"{"layers":[]}"#),
        };
        asked.lock().unwrap().push(head[0].clone());
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).unwrap();
    }
}

#[test]
fn an_anonymous_token_is_fetched_where_one_is_wanted() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let asked = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let seen = std::sync::Arc::clone(&asked);
    std::thread::spawn(move || wants_a_token(&listener, &seen));
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let pull = |tag: &str| {
        let reference = Reference::parse(&format!("{at}/a/b:{tag}")).unwrap();
        oci::pull(&reference, &Platform::here(), &store, &store.work(0).unwrap(), &Unwatched).unwrap_err()
    };
    // The token opens the manifest, which then has nothing in it.
    assert!(pull("x").what.contains("0 layers"));
    let token = "GET /token?service=a%20b&scope=repository%3Aa%2Fb%3Apull HTTP/1.1";
    assert_eq!(asked.lock().unwrap()[1], token);
    assert!(pull("closed").what.contains("not open to everybody"));
}
