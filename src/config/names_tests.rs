//! The names that are followed, as they are written.

use super::tests::load;
use super::{ConfigError, FollowMode};

#[test]
fn readonly_names_are_a_list_or_one_string_with_commas() {
    for yaml in ["[a, b]", "\"a,b\"", "\" a , b ,\""] {
        let (config, _) = load(&format!("storage: {{ipfs: {{readonlyipnskeys: {yaml}}}}}"), &[]).unwrap();
        assert!(config.names.readonly.iter().map(|name| &name.text).eq(["a", "b"]), "{yaml}");
    }
}

#[test]
fn what_is_brought_of_a_name_is_a_word_for_all_or_one_for_each() {
    let modes = |follow: &str| {
        let yaml =
            format!("storage: {{ipfs: {{readonlyipnskeys: [a, b], follow: {follow}, followquota: 1GiB}}}}");
        let names = load(&yaml, &[]).map(|(config, _)| config.names)?;
        assert_eq!(names.follow_quota_bytes, Some(1 << 30));
        Ok::<_, ConfigError>(names.readonly.iter().map(|name| name.follow).collect::<Vec<_>>())
    };
    assert_eq!(modes("~").unwrap(), [FollowMode::Tags; 2]);
    assert_eq!(modes("all").unwrap(), [FollowMode::All; 2]);
    assert_eq!(modes("{a: none}").unwrap(), [FollowMode::None, FollowMode::Tags]);
    assert_eq!(modes("{'*': all, b: tags}").unwrap(), [FollowMode::All, FollowMode::Tags]);
    for (wrong, line) in [
        ("some", "config key storage.ipfs.follow = \"some\": none, tags or all is expected"),
        ("{a: some}", "config key storage.ipfs.follow.a = \"some\": none, tags or all is expected"),
        (
            "{c: all}",
            "config key storage.ipfs.follow.c = \"all\": this name is not one of storage.ipfs.readonlyipnskeys",
        ),
    ] {
        assert_eq!(modes(wrong).unwrap_err().to_string(), line);
    }
}
