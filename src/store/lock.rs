//! One process at a time.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::StoreError;

/// Held for as long as it lives; the kernel gives it back when the process ends, however it ends.
pub(super) struct Lock {
    file: File,
}

impl Lock {
    pub(super) fn take(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("LOCK");
        let failed = |error| StoreError::io("lock", &path, error);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                return Err(StoreError::Locked { folder: folder.to_owned(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A program that is just being started has the file open too, until it runs: to close ours would not be enough.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_second_is_told_who_has_it() {
        let folder = TempDir::new().unwrap();
        let held = Lock::take(folder.path()).unwrap();
        let Err(StoreError::Locked { pid, .. }) = Lock::take(folder.path()) else { panic!("locked twice") };
        assert_eq!(pid, std::process::id().to_string());
        drop(held);
        assert!(Lock::take(folder.path()).is_ok());
    }
}
