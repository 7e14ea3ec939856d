//! The cache without a compiler: what is compiled is a few bytes.

use super::{super::compile::Arch, *};
use crate::testing::Folder;

fn configuration(precision: u32) -> Configuration {
    Configuration { file: "sgd.cu", defines: vec![("PRECISION", precision)], arch: Arch::sm(90) }
}

/// What the cache gives, and whether it compiled.
fn get(cache: &Cache, configuration: &Configuration, version: (i32, i32), compiled: &[u8]) -> (Vec<u8>, bool) {
    let mut asked = false;
    let cubin = cache.get_or(configuration, &key(configuration, version), || {
        asked = true;
        Ok(compiled.to_vec())
    });
    (cubin.unwrap(), asked)
}

#[test]
fn what_was_compiled_once_is_read_the_second_time() {
    let folder = Folder::new("cubins-twice");
    // Line feeds in machine code must not be taken for those of the head.
    let cubin = b"\x7fELF\n\n\ncode";
    for (round, compiles) in [(1, true), (2, false)] {
        let cache = Cache::at(Kind::Cubins, &folder.join("new/cubins"));
        assert_eq!(get(&cache, &configuration(0), (13, 0), cubin), (cubin.to_vec(), compiles), "round {round}");
        assert!(cache.take_warning().is_none());
        assert_eq!(cache.size().unwrap().entries, 1);
    }
}

#[test]
fn other_defines_another_architecture_and_another_compiler_are_other_entries() {
    let folder = Folder::new("cubins-keys");
    let cache = Cache::at(Kind::Cubins, folder.path());
    let other_arch = Configuration { arch: Arch::sm(80), ..configuration(0) };
    let other_file = Configuration { file: "reduce.cu", ..configuration(0) };
    get(&cache, &configuration(0), (13, 0), b"first");
    for (configuration, version) in
        [(configuration(1), (13, 0)), (other_arch, (13, 0)), (other_file, (13, 0)), (configuration(0), (12, 9))]
    {
        assert_eq!(get(&cache, &configuration, version, b"other"), (b"other".to_vec(), true), "{configuration}");
    }
    assert_eq!(get(&cache, &configuration(0), (13, 0), b"never"), (b"first".to_vec(), false));
}

#[test]
fn an_entry_with_any_damage_is_made_again() {
    let folder = Folder::new("cubins-damage");
    let cache = Cache::at(Kind::Cubins, folder.path());
    get(&cache, &configuration(0), (13, 0), b"good code");
    let path = folder.join(&folder.names()[0]);
    let whole = fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = vec![Vec::new(), whole[..whole.len() - 1].to_vec(), [&whole[..], b"x"].concat()];
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        damaged.push(flipped);
    }
    for entry in damaged {
        fs::write(&path, &entry).unwrap();
        assert_eq!(get(&cache, &configuration(0), (13, 0), b"good code"), (b"good code".to_vec(), true));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_folder_that_cannot_be_written_means_compiling_each_time_and_one_warning() {
    let folder = Folder::new("cubins-unwritable");
    // A file where the folder should be: not even root can write there.
    fs::write(folder.join("file"), "").unwrap();
    let cache = Cache::at(Kind::Cubins, &folder.join("file/cubins"));
    for _ in 0..2 {
        assert_eq!(get(&cache, &configuration(0), (13, 0), b"code"), (b"code".to_vec(), true));
    }
    let warning = cache.take_warning().unwrap();
    assert!(warning.to_string().contains("cannot be kept in"), "{warning}");
    assert!(cache.take_warning().is_none());
    get(&cache, &configuration(0), (13, 0), b"code");
    assert!(cache.take_warning().is_none(), "it is said once");
}

#[test]
fn many_at_once_all_get_the_code_and_leave_one_whole_entry() {
    let folder = Folder::new("cubins-many");
    let code = vec![7_u8; 100_000];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let cache = Cache::at(Kind::Cubins, folder.path());
                assert_eq!(get(&cache, &configuration(0), (13, 0), &code).0, code);
            });
        }
    });
    assert_eq!(folder.names().len(), 1);
    assert_eq!(get(&Cache::at(Kind::Cubins, folder.path()), &configuration(0), (13, 0), b"never"), (code, false));
}

#[cfg(target_os = "linux")]
#[test]
fn the_users_cache_follows_xdg() {
    let home = || Some(PathBuf::from("/home/me"));
    let dir = |path: &str| Some(PathBuf::from(path));
    assert_eq!(user_dir(|_| None, home()), dir("/home/me/.cache/mnist-swiglu"));
    assert_eq!(user_dir(|_| Some("/c".into()), home()), dir("/c/mnist-swiglu"));
    assert_eq!(user_dir(|_| Some("c".into()), home()), dir("/home/me/.cache/mnist-swiglu"));
    assert_eq!(user_dir(|_| None, None), None);
}
