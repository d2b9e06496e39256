//! Repositories that hide their content, and what opens them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use age::secrecy::ExposeSecret;
use tintype_repo::{Encryption, Error, Kind, Repository, VerifyLevel};

use crate::support::{BLOCK, begin, content, draft, files, init, read_all, take};

fn sealed(encryption: Encryption) -> (tempfile::TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let encryption = match encryption {
        Encryption::KeyFile(name) => Encryption::KeyFile(folder.path().join(name)),
        other => other,
    };
    let repository = init(&folder.path().join("repo"), &encryption);
    (folder, repository)
}

fn kind(result: Result<Repository, Error>) -> Kind {
    result.map(drop).unwrap_err().kind()
}

#[test]
fn nothing_of_the_guest_is_readable() {
    let (folder, repository) = sealed(Encryption::KeyFile("key".into()));
    let secret = b"the quick brown fox jumps over it".repeat(4096);
    let secret = &secret[..secret.len() / BLOCK * BLOCK];
    let session = begin(&repository);
    let blob = session.blob(secret).unwrap();
    let root = crate::support::write_image(&session, secret, None);
    let mut draft = draft(vec![("ram", root)]);
    draft.blobs = vec![("state".to_owned(), blob.clone())];
    draft.details = serde_json::json!("the quick brown fox");
    let record = session.commit(draft).unwrap();
    for path in files(&folder.path().join("repo")) {
        let bytes = fs::read(&path).unwrap();
        let found = bytes.windows(9).any(|window| window == b"brown fox");
        assert!(!found, "{}", path.display());
    }
    let mode = fs::metadata(folder.path().join("key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = Encryption::KeyFile(folder.path().join("key"));
    let opened = Repository::open_with(repository.path(), &[key]).unwrap();
    assert!(opened.snapshots().unwrap().records == std::slice::from_ref(&record));
    assert!(read_all(&opened, &record.images[0].root) == secret);
    assert!(opened.read_blob(&blob).unwrap() == secret);
    let report = opened.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
}

#[test]
fn other_keys_open_nothing() {
    let (folder, repository) = sealed(Encryption::KeyFile("key".into()));
    let path = repository.path();
    assert_eq!(kind(Repository::open(path)), Kind::Key);
    let other = Encryption::KeyFile(folder.path().join("other"));
    assert_eq!(kind(Repository::open_with(path, &[other])), Kind::Key);
    let words = Encryption::Passphrase("words".to_owned());
    assert_eq!(kind(Repository::open_with(path, &[words])), Kind::Key);
}

#[test]
fn keys_come_and_go() {
    let (folder, repository) = sealed(Encryption::Passphrase("correct horse".to_owned()));
    let record = take(&repository, &content(1, 40 * BLOCK), None);
    let file = Encryption::KeyFile(folder.path().join("key"));
    let first = repository.keys().unwrap();
    assert_eq!(first.iter().map(|key| key.kind.as_str()).collect::<Vec<_>>(), ["passphrase"]);
    assert_eq!(repository.remove_key(&first[0].id).map_err(|e| e.kind()), Err(Kind::Invalid));
    assert!(repository.add_key(&Encryption::None).is_err());
    repository.add_key(&file).unwrap();
    let path = repository.path();
    for key in [file.clone(), Encryption::Passphrase("correct horse".to_owned())] {
        let opened = Repository::open_with(path, &[Encryption::None, key]).unwrap();
        assert!(opened.snapshots().unwrap().records == std::slice::from_ref(&record));
    }
    repository.remove_key(&first[0].id).unwrap();
    let words = Encryption::Passphrase("correct horse".to_owned());
    assert_eq!(kind(Repository::open_with(path, &[words])), Kind::Key);
    Repository::open_with(path, &[file]).unwrap();
}

#[test]
fn an_age_identity_opens_what_its_recipient_was_given() {
    let (folder, repository) = sealed(Encryption::KeyFile("key".into()));
    let record = take(&repository, &content(1, 9 * BLOCK), None);
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Encryption::AgeIdentity(path)
    };
    let identity = age::x25519::Identity::generate();
    let other = age::x25519::Identity::generate().to_string().expose_secret().to_owned();
    let recipient = identity.to_public().to_string();
    let right = format!("# kept offline\n{other}\n{}\n", identity.to_string().expose_secret());
    let (right, other) = (file("right", &right), file("other", &other));
    repository.add_key(&Encryption::AgeRecipient(recipient.clone())).unwrap();
    let opened = Repository::open_with(repository.path(), std::slice::from_ref(&right)).unwrap();
    assert!(opened.snapshots().unwrap().records == [record]);
    for wrong in [other, file("empty", ""), Encryption::AgeRecipient(recipient)] {
        assert_eq!(kind(Repository::open_with(repository.path(), &[wrong])), Kind::Key);
    }
    for none in [right, Encryption::AgeRecipient("age1nothing".to_owned())] {
        assert_eq!(repository.add_key(&none).map_err(|e| e.kind()), Err(Kind::Invalid));
    }
    assert_eq!(repository.keys().unwrap().len(), 2);
}

#[test]
fn two_who_remove_the_last_keys_leave_one() {
    for _ in 0..50 {
        let (folder, repository) = sealed(Encryption::KeyFile("key".into()));
        let second = Encryption::KeyFile(folder.path().join("second"));
        repository.add_key(&second).unwrap();
        let slots = repository.keys().unwrap();
        std::thread::scope(|scope| {
            for slot in &slots {
                scope.spawn(|| repository.remove_key(&slot.id));
            }
        });
        let left = repository.keys().unwrap();
        assert!(!left.is_empty());
        if left.len() == 2 {
            repository.remove_key(&slots[0].id).unwrap();
        }
        let keys = [Encryption::KeyFile(folder.path().join("key")), second];
        Repository::open_with(repository.path(), &keys).unwrap();
    }
}

#[test]
fn a_removal_that_was_killed_is_finished_by_the_next() {
    let (folder, repository) = sealed(Encryption::KeyFile("key".into()));
    repository.add_key(&Encryption::KeyFile(folder.path().join("second"))).unwrap();
    let slots = repository.keys().unwrap();
    let marks = repository.path().join("removal");
    fs::create_dir_all(&marks).unwrap();
    fs::write(marks.join(&slots[0].id), "").unwrap();
    assert_eq!(repository.keys().unwrap(), slots);
    let refused = repository.remove_key(&slots[1].id).map_err(|error| error.kind());
    assert_eq!(refused, Err(Kind::Invalid), "the other one may be gone in a moment");
    repository.remove_key(&slots[0].id).unwrap();
    assert_eq!(repository.keys().unwrap(), &slots[1..]);
    assert!(files(&marks).is_empty());
}

#[test]
fn a_sealed_repository_cannot_pass_for_an_open_one() {
    let (folder, repository) = sealed(Encryption::KeyFile("key".into()));
    let config = repository.path().join("config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"aes-256-gcm\"", "")).unwrap();
    let key = Encryption::KeyFile(folder.path().join("key"));
    assert_eq!(kind(Repository::open_with(repository.path(), &[key])), Kind::Key);
}

#[test]
fn damage_of_sealed_content_is_found() {
    let (_folder, repository) = sealed(Encryption::KeyFile("key".into()));
    take(&repository, &content(1, 20 * BLOCK), None);
    for path in files(&repository.path().join("seg")) {
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(37) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
            // Nodes stay in memory, so damage of the map shows in the table.
            assert!(!report.damaged.is_empty(), "{} byte {at}", path.display());
        }
        fs::write(&path, &good).unwrap();
    }
}
