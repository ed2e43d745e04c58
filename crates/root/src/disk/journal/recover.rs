//! Logs that an earlier helper left, or that can't be finished.

use super::kept::Kept;
use super::seal::{self, Seal};
use super::{Image, Journal, Pending, Recovered};
use crate::fail::Fail;
use crate::host::Host;
use crate::log::{Level, Value};
use std::sync::Arc;
use wire::code::Code;
use wire::path::{HostPath, Root};

/// What a dropped log is told as.
const DROPPED: &str = "write of an image dropped, it is gone";
/// And one that waits.
const AWAY: &str = "an image with half a write is not where it was; the write is finished when it is used";

fn tell(host: &Host, level: Level, message: &str, name: &str, causes: &[String]) {
    let fields = [("name", Value::Text(name, 256)), ("cause", Value::List(causes, 1024))];
    host.log.own(level, message, &fields);
}

/// Whose a log is. Without an image: its path, and why.
enum Whose {
    Image(Box<Image>),
    /// It may have another name by now.
    Away(String, String),
    Nobodys(String, String),
}

impl Journal {
    /// Takes away the logs of images that are gone.
    pub(super) fn drop_those_of_no_image(&self, host: &Host) {
        let cut_off =
            |(key, pending): (&String, &Pending)| pending.is_cut_off.then(|| (key.clone(), Arc::clone(&pending.kept)));
        let logs: Vec<(String, Arc<Kept>)> = self.pending().iter().filter_map(cut_off).collect();
        for (key, kept) in logs {
            // What can't be told stays, and is told where that image is used.
            let Some(seal) = Seal::read(&kept.log.file) else { continue };
            if let Ok(Whose::Nobodys(path, why) | Whose::Away(path, why)) = whose(host, seal)
                && self.end(&key, &kept).is_ok()
            {
                tell(host, Level::Warn, DROPPED, &path, &[why]);
            }
        }
    }

    /// What an earlier helper left: what was not committed is removed, the rest finished. To be called before there are
    /// requests.
    pub(in crate::disk) fn recover(&self, host: &Host) {
        let names = match self.shelf.dir.names() {
            Ok(names) => names,
            Err(error) => return tell(host, Level::Error, "logs of writes can't be read", "", &[error.to_string()]),
        };
        let failed = |name: &str, fail: Fail| {
            let causes = [vec![fail.message], fail.causes].concat();
            tell(host, Level::Error, "write of an image can't be finished", name, &causes);
        };
        for name in names {
            if name.starts_with(".unnamed-") {
                // Nothing of it counts, whether it can be removed or not.
                let _ = self.shelf.dir.unlink(&name);
            } else if name.starts_with("write-") {
                match self.shelf.open(&name) {
                    Ok(Some(kept)) => self.recover_one(host, kept).unwrap_or_else(|fail| failed(&name, fail)),
                    Ok(None) => tell(host, Level::Warn, "a log of writes is another helper's", &name, &[]),
                    Err(fail) => failed(&name, fail),
                }
            }
        }
    }

    fn recover_one(&self, host: &Host, kept: Kept) -> Result<(), Fail> {
        // One without a seal, or of which a part is there, was not committed.
        let Some(seal) = Seal::read(&kept.log.file) else {
            self.shelf.discard(&kept);
            return Ok(());
        };
        let (kept, key) = (Arc::new(kept), seal::key(&seal.handle));
        // Until it is struck it counts.
        self.pending().insert(key.clone(), Pending { kept: Arc::clone(&kept), is_cut_off: true });
        let done = match whose(host, seal)? {
            Whose::Image(image) => self.replay(host, &key, &kept, &image)?,
            Whose::Away(path, why) => Recovered::Away(path, why),
            Whose::Nobodys(path, why) => self.drop_log(&key, &kept, &path, &why)?,
        };
        match done {
            Recovered::Finished(path) => tell(host, Level::Info, "write of an image finished", &path, &[]),
            Recovered::Dropped(path, why) => tell(host, Level::Warn, DROPPED, &path, &[why]),
            Recovered::Away(path, why) => tell(host, Level::Warn, AWAY, &path, &[why]),
        }
        Ok(())
    }
}

/// The image that a log is for, where it still has its name.
fn whose(host: &Host, Seal { path, handle, .. }: Seal) -> Result<Whose, Fail> {
    let dropped = |path: &str, why: &str| Ok(Whose::Nobodys(path.to_owned(), why.to_owned()));
    // It is known again by its handle, whatever its name is then; by an inode's number alone it would not be.
    let away = |why: &str| {
        let whose = if handle.kind < 0 { Whose::Nobodys } else { Whose::Away };
        Ok(whose(path.clone(), why.to_owned()))
    };
    let at = HostPath::new(&path, &[Root::State], &host.settings.roots, Code::OperationFailed, "image_path");
    let Ok(at) = at else {
        return dropped(&path, "it is not below the state directory");
    };
    let image = match Image::open(host, &at) {
        Ok(image) => image,
        Err(unopened) if unopened.why != crate::places::Why::Failed => {
            return away(&Fail::from(unopened).message);
        }
        Err(unopened) => return Err(unopened.into()),
    };
    if image.handle != handle {
        return away("another file has its name");
    }
    Ok(Whose::Image(Box::new(image)))
}
