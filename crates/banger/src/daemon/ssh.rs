//! ssh's keys: the owner's, made once; and for each VM one of its own, written into its disk before it boots
//! and pinned before anybody can connect.
//!
//! | below `ssh/` | what |
//! | --- | --- |
//! | `id_ed25519`, `.pub` | the owner's key, which every VM lets in as root |
//! | `config` | ssh's settings for `*.vm`, for `banger vm ssh` and for an Include; written anew at each start |
//! | `known_hosts` | the key of each VM, under `NAME.vm`; written anew from the rows |

use crate::api::Fault;
use crate::daemon::error::exit;
use crate::daemon::names;
use crate::daemon::settings::Settings;
use crate::daemon::store::Store;
use crate::daemon::store::vms::{self, Vm};
use crate::daemon::vm::places::Places;
use crate::image::program;
use crate::image::store::sync;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use wire::image::NewFile;
use wire::name::guest_path::GuestPath;

const OWNER: &str = "id_ed25519";
const OWNER_PUBLIC: &str = "id_ed25519.pub";
const KNOWN: &str = "known_hosts";
/// A VM's own key in it, and the public half.
pub(crate) const OWN: [&str; 2] = ["/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub"];

/// What the guest's own server is told: its key, whom it lets in, and that nobody comes in by a password. Debian's
/// configuration reads this file first, and the first word on a matter counts (sshd_config(5)).
const SERVER: &str = "\
# Of banger: written when this VM was made.
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile .ssh/authorized_keys /etc/banger/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
";

/// The keys' directory.
#[derive(Debug)]
pub struct Ssh {
    dir: PathBuf,
    /// The private half of the owner's key, where one of his own is configured.
    key: Option<PathBuf>,
    /// Held by whoever makes the owner's key or writes `known_hosts`.
    writes: Mutex<()>,
}

/// An ed25519 key.
struct Pair {
    /// In OpenSSH's own format, for a file.
    private: Vec<u8>,
    /// `ssh-ed25519 AAAA…`, and the comment where there is one.
    public: String,
}

impl Pair {
    /// A new one, of the kernel's random numbers.
    fn make(comment: &str) -> Result<Pair, Fault> {
        let mut seed = [0; 32];
        let got = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(Fault::bug)?;
        if got != seed.len() {
            return Err(Fault::bug("there are no random numbers"));
        }
        let key = PrivateKey::new(Ed25519Keypair::from_seed(&seed).into(), comment).map_err(Fault::bug)?;
        let private = key.to_openssh(LineEnding::LF).map_err(Fault::bug)?.as_bytes().to_vec();
        Ok(Pair { private, public: key.public_key().to_openssh().map_err(Fault::bug)? })
    }
}

impl Ssh {
    /// Takes the directory over; `key` is the owner's where he has configured one.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open(state: &Path, key: Option<PathBuf>) -> Result<Ssh, Fault> {
        let dir = state.join("ssh");
        make_dir(&dir)?;
        Ok(Ssh { dir, key, writes: Mutex::new(()) })
    }

    /// Makes what is needed before anybody asks: the settings and the owner's key. `socket` is the daemon's.
    ///
    /// # Errors
    /// As [`Ssh::owner`], and the settings can't be written.
    pub(crate) fn begin(&self, socket: &Path) -> Result<(), Fault> {
        let banger = std::env::current_exe().map_err(Fault::bug)?.with_file_name("banger");
        self.write("config", &self.settings(&banger, socket))?;
        self.owner().map(drop)
    }

    /// The file of ssh's settings.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// What a connection to a VM rests on, whatever else ssh is told: the VM's key is known and no other passes, our key is shown,
    /// and nothing of this machine is lent to the guest. The way is the agent's: it needs no network.
    fn settings(&self, banger: &Path, socket: &Path) -> String {
        let path = |path: &Path| path.to_string_lossy().replace('%', "%%");
        // A word of the shell's that runs the command.
        let word = |word: &Path| format!("'{}'", path(word).replace('\'', "'\\''"));
        let (key, known_hosts) = (path(&self.private()), path(&self.dir.join(KNOWN)));
        let (banger, socket) = (word(banger), word(socket));
        format!(
            "\
# banger's VMs. bangerd writes this file at each start: banger ssh-config --install includes it.
Host *.{zone}
    User root
    IdentityFile \"{key}\"
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile \"{known_hosts}\"
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    HostKeyAlgorithms ssh-ed25519
    UpdateHostKeys no
    CheckHostIP no
    PasswordAuthentication no
    KbdInteractiveAuthentication no
    ForwardAgent no
    ForwardX11 no
    ControlPath none
    ProxyCommand {banger} vm dial --socket {socket} %h %p
",
            zone = names::ZONE
        )
    }

    fn private(&self) -> PathBuf {
        self.key.clone().unwrap_or_else(|| self.dir.join(OWNER))
    }

    /// The public half of a key that is configured: the file beside it, else what ssh-keygen makes of it.
    fn configured(key: &Path) -> Result<String, Fault> {
        let wrong = |why: String| {
            Fault::new("no_ssh_key", exit::STATE, format!("ssh_key_path: {} is no key that can be used", key.display()))
                .why(why)
                .fix(format!("ssh-keygen -t ed25519 -f {}", key.display()))
                .fix("without ssh_key_path bangerd makes one of its own")
        };
        let mut beside = key.as_os_str().to_owned();
        beside.push(".pub");
        let line = match (fs::metadata(key), fs::read_to_string(&beside)) {
            (Err(error), _) => return Err(wrong(error.to_string())),
            (Ok(_), Ok(line)) => line,
            // Without a passphrase, which nobody is here to type.
            (Ok(_), Err(_)) => {
                let mut keygen = program::bound("ssh-keygen");
                program::output(keygen.args(["-y", "-P", "", "-f"]).arg(key))
                    .map_err(|error| wrong(error.to_string()))?
            }
        };
        // It becomes a line of a file in each VM.
        let line = line.trim_end();
        let is_line = line.len() <= 16 << 10 && !line.contains(char::is_control) && line.split(' ').nth(1).is_some();
        if is_line { Ok(format!("{line}\n")) } else { Err(wrong("its public half is no line of a key's".into())) }
    }

    /// The owner's public key, a line; made where it is missing and not his own.
    ///
    /// # Errors
    /// It can't be written or read, or the one that is configured can't be used.
    pub(crate) fn owner(&self) -> Result<String, Fault> {
        if let Some(key) = &self.key {
            return Ssh::configured(key);
        }
        let _held = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let public = self.dir.join(OWNER_PUBLIC);
        if !self.dir.join(OWNER).exists() {
            let made = Pair::make("banger")?;
            // The private one last: where it is, both are whole.
            self.keep(OWNER_PUBLIC, format!("{}\n", made.public).as_bytes())?;
            self.keep(OWNER, &made.private)?;
        }
        fs::read_to_string(&public).map_err(|error| Fault::file("reading", &public, &error))
    }

    /// What a new VM's disk gets so that its owner, and nobody else, comes in by ssh: a key of its own, the owner's, and the
    /// server's settings.
    ///
    /// # Errors
    /// A key can't be made, or its public half not kept.
    pub(crate) fn files(&self, places: &Places<'_>) -> Result<Vec<NewFile>, Fault> {
        let shared = self.shared()?;
        let mut files = self.own(places)?;
        files.extend(shared);
        Ok(files)
    }

    /// The part of it that all VMs have.
    ///
    /// # Errors
    /// The owner's key can't be made.
    pub(crate) fn shared(&self) -> Result<Vec<NewFile>, Fault> {
        Ok(vec![
            file("/etc/banger/authorized_keys", self.owner()?.into_bytes(), 0o644)?,
            file("/etc/ssh/sshd_config.d/banger.conf", SERVER.as_bytes().to_vec(), 0o644)?,
        ])
    }

    /// A VM's own part of it: a key, whose public half stays beside the disk.
    ///
    /// # Errors
    /// A key can't be made, or its public half not kept.
    pub(crate) fn own(&self, places: &Places<'_>) -> Result<Vec<NewFile>, Fault> {
        let kept = places.host_key();
        match fs::remove_file(&kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Fault::file("removing", &kept, &error));
            }
            _ => {}
        }
        let Pair { private, public } = Pair::make("")?;
        fs::write(&kept, &public).map_err(|error| Fault::file("writing", &kept, &error))?;
        let [private_path, public_path] = OWN;
        Ok(vec![file(private_path, private, 0o600)?, file(public_path, format!("{public}\n").into_bytes(), 0o644)?])
    }

    /// Writes down the keys of all VMs, in the place of those that were known before.
    ///
    /// # Errors
    /// The rows can't be read, or the file not written.
    pub(crate) fn pin(&self, settings: &Settings, store: &Store) -> Result<(), Fault> {
        let line = |vm: &Vm| {
            let key = fs::read_to_string(Places::of(settings, vm).host_key()).ok()?;
            Some(format!("{} {}\n", host(vm), key.trim_end()))
        };
        // Held from before the rows are read: the last to write is the last to have read.
        let _held = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let text: String = store.change(|t| vms::all(t))?.iter().filter_map(line).collect();
        self.write(KNOWN, &text)
    }

    /// Writes a file as a whole, which each start writes anew.
    fn write(&self, name: &str, text: &str) -> Result<(), Fault> {
        let (to, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &to)).map_err(|error| Fault::file("writing", &to, &error))
    }

    /// Writes a file of this user's alone as a whole, which is never written again: it is on the disk when this returns.
    fn keep(&self, name: &str, data: &[u8]) -> Result<(), Fault> {
        let (to, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let keep = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(data)?;
            file.sync_all()?;
            fs::rename(&new, &to)?;
            sync(&self.dir)
        };
        keep().map_err(|error| Fault::file("writing", &to, &error))
    }
}

fn file(path: &str, data: Vec<u8>, mode: u16) -> Result<NewFile, Fault> {
    GuestPath::new(path).map(|path| NewFile { path, data, mode }).map_err(Fault::bug)
}

/// The name under which a VM's key is known.
pub(crate) fn host(vm: &Vm) -> String {
    format!("{}.{}", vm.name, names::ZONE)
}

fn make_dir(path: &Path) -> Result<(), Fault> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Fault::file("making", path, &error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::vms::tests::planned;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// What ssh-keygen makes of a private half alone, all of which it reads for that.
    fn public_half(path: &Path) -> String {
        let out = Command::new("ssh-keygen").args(["-y", "-P", "", "-f"]).arg(path).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    #[test]
    fn each_vm_has_a_key_of_its_own_and_lets_the_owner_in() {
        let state = tempfile::tempdir().unwrap();
        let settings = Settings { state: state.path().into(), ..Settings::of_test() };
        let ssh = Ssh::open(state.path(), None).unwrap();
        let vms = [planned(2), planned(3)];
        let mut private = Vec::new();
        for vm in &vms {
            let places = Places::of(&settings, vm);
            fs::create_dir_all(places.dir()).unwrap();
            let files = ssh.files(&places).unwrap();
            let of = |name: &str| files.iter().find(|file| file.path.to_string().ends_with(name)).unwrap();
            let (key, authorized) = (of("ssh_host_ed25519_key"), of("authorized_keys"));
            assert_eq!((key.mode, authorized.mode), (0o600, 0o644));
            let written = state.path().join("key");
            fs::write(&written, &key.data).unwrap();
            fs::set_permissions(&written, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(public_half(&written), fs::read_to_string(places.host_key()).unwrap());
            assert_eq!(authorized.data, fs::read(state.path().join("ssh/id_ed25519.pub")).unwrap());
            private.push(key.data.clone());
        }
        assert_ne!(private[0], private[1]);
        assert_eq!(fs::metadata(state.path().join("ssh/id_ed25519")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Ssh::open(state.path(), None).unwrap().owner().unwrap(), ssh.owner().unwrap(), "made once");
        // Of a daemon that was killed between the two halves, or in one.
        fs::remove_file(state.path().join("ssh/id_ed25519")).unwrap();
        fs::write(state.path().join("ssh/id_ed25519.new"), "half").unwrap();
        let anew = ssh.owner().unwrap();
        let (private, public) = (state.path().join("ssh/id_ed25519"), state.path().join("ssh/id_ed25519.pub"));
        assert_eq!(public_half(&private) + "\n", anew);
        assert_eq!(fs::read_to_string(public).unwrap(), anew);
        assert!(anew.starts_with("ssh-ed25519 AAAA") && anew.ends_with(" banger\n"), "{anew}");

        let store = Store::open(Path::new(":memory:")).unwrap();
        store.change(|t| vms.iter().try_for_each(|vm| vms::save(t, vm))).unwrap();
        ssh.pin(&settings, &store).unwrap();
        let known = |name: &str| {
            let find = Command::new("ssh-keygen")
                .args(["-F", name, "-f"])
                .arg(state.path().join("ssh/known_hosts"))
                .output()
                .unwrap();
            find.status.success()
        };
        assert!(known("vm-2.vm") && known("vm-3.vm") && !known("vm-4.vm"));
        store.change(|t| vms::remove(t, &vms[0].id)).unwrap();
        ssh.pin(&settings, &store).unwrap();
        assert!(!known("vm-2.vm") && known("vm-3.vm"));
    }

    #[test]
    fn the_owner_may_have_a_key_of_his_own() {
        let state = tempfile::tempdir().unwrap();
        let key = state.path().join("mine");
        let ssh = Ssh::open(state.path(), Some(key.clone())).unwrap();
        assert_eq!(ssh.owner().unwrap_err().code, "no_ssh_key");
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.unwrap().success());
        let public = fs::read_to_string(state.path().join("mine.pub")).unwrap();
        assert_eq!(ssh.owner().unwrap(), public);
        fs::remove_file(state.path().join("mine.pub")).unwrap();
        let words = |line: &str| line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&ssh.owner().unwrap()), words(&public), "of the private half");
        assert!(
            ssh.settings(Path::new("/b"), Path::new("/s")).contains(&format!("IdentityFile \"{}\"", key.display()))
        );
        assert!(!state.path().join("ssh/id_ed25519").exists());
        fs::write(state.path().join("mine.pub"), "ssh-ed25519 AAAA\nssh-ed25519 BBBB\n").unwrap();
        assert_eq!(ssh.owner().unwrap_err().code, "no_ssh_key", "two lines");
    }

    #[test]
    fn ssh_understands_what_is_meant() {
        let state = tempfile::tempdir().unwrap();
        let odd = state.path().join("it's 100%");
        fs::create_dir(&odd).unwrap();
        let ssh = Ssh::open(&odd, None).unwrap();
        let config = ssh.settings(Path::new("/bin/ban'ger"), Path::new("/run/a b"));
        fs::write(ssh.config(), config).unwrap();
        let of = |host: &str, more: &[&str]| {
            let out = Command::new("ssh").arg("-G").arg("-F").arg(ssh.config()).args(more).arg(host).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        let text = of("web.vm", &[]);
        for line in [
            "user root",
            "stricthostkeychecking true",
            "identityagent none",
            "identitiesonly yes",
            "forwardagent no",
            "forwardx11 no",
            "passwordauthentication no",
            "hostkeyalgorithms ssh-ed25519",
            r"proxycommand '/bin/ban'\''ger' vm dial --socket '/run/a b' %h %p",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}: {text}");
        }
        assert!(text.contains("it's 100%"), "{text}");
        assert!(of("web.vm", &["-l", "me"]).contains("user me\n"));
        assert!(!of("web.example", &[]).contains("proxycommand"), "other hosts are left alone");
    }
}
