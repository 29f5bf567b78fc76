//! The one writer of the own root.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::join_all;

use super::{Desk, Knows, file, leases, push};
use crate::mirror::MirrorError;
use crate::mirror::commit::{Changes, Commits};

async fn writer(desk: &Desk) -> Commits {
    let empty = desk.tree.empty().await.unwrap().cid;
    Commits::start(&desk.tasks, desk.tree.clone(), desk.state().clone(), leases(), desk.name(), empty)
}

/// Counts the roots that are told of from here on.
fn count_roots(desk: &Desk, commits: &Commits) -> Arc<AtomicUsize> {
    let count = Arc::<AtomicUsize>::default();
    let (mut told, counted) = (commits.watch(), count.clone());
    desk.tasks.spawn_short("count", |stop| async move {
        while let Some(Ok(())) = stop.run_until_cancelled(told.changed()).await {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    count
}

#[tokio::test(start_paused = true)]
async fn edits_that_wait_together_become_one_root() {
    let desk = Desk::new(Knows::Nothing);
    let commits = writer(&desk).await;
    let roots = count_roots(&desk, &commits);
    let paths: Vec<String> = (0..20).map(|n| format!("a/{n}")).collect();
    let applied = join_all(paths.iter().map(|path| commits.apply(file(path)))).await;
    assert!(applied.iter().all(Result::is_ok));

    tokio::task::yield_now().await;
    assert_eq!(roots.load(Ordering::SeqCst), 1);
    let root = commits.root();
    for path in &paths {
        assert!(desk.tree.lookup(&root, path).await.unwrap().is_some(), "{path}");
    }
    assert_eq!(desk.state().root(desk.name()).unwrap(), Some(root));
}

#[tokio::test(start_paused = true)]
async fn a_commit_stands_when_its_caller_has_gone() {
    let desk = Desk::new(Knows::Nothing);
    let commits = writer(&desk).await;
    let mut told = commits.watch();
    let mut asked = Box::pin(commits.apply(file("left")));
    assert!(asked.as_mut().now_or_never().is_none());
    drop(asked);

    told.changed().await.unwrap();
    assert!(desk.tree.lookup(&commits.root(), "left").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_leaves_the_tree_and_says_so() {
    let desk = Desk::new(Knows::Nothing);
    let commits = writer(&desk).await;
    push(&commits, "file").await;
    let before = commits.root();

    let failed = commits.apply(file("file/below")).await.unwrap_err();
    assert!(matches!(&failed, MirrorError::Commit(_)), "{failed}");
    assert_eq!(commits.root(), before);
    assert_eq!(desk.state().root(desk.name()).unwrap(), Some(before));
    push(&commits, "other").await;
    assert!(desk.tree.lookup(&commits.root(), "file").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_cannot_be_made_does_not_take_others_along() {
    let desk = Desk::new(Knows::Nothing);
    let commits = writer(&desk).await;
    push(&commits, "file").await;
    let applied = join_all(["good", "file/below", "better"].map(|path| commits.apply(file(path)))).await;
    assert_eq!(applied.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    for path in ["file", "good", "better"] {
        assert!(desk.tree.lookup(&commits.root(), path).await.unwrap().is_some(), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_change_makes_no_new_root() {
    let desk = Desk::new(Knows::Nothing);
    let commits = writer(&desk).await;
    push(&commits, "file").await;
    let (before, roots) = (commits.root(), count_roots(&desk, &commits));
    commits.apply(Changes::default()).await.unwrap();
    push(&commits, "file").await;
    tokio::task::yield_now().await;
    assert_eq!((commits.root(), roots.load(Ordering::SeqCst)), (before, 0));
}

#[tokio::test(start_paused = true)]
async fn commits_that_were_queued_are_made_before_the_end() {
    let mut desk = Desk::new(Knows::Nothing);
    let commits = writer(&desk).await;
    let mut asked = Box::pin(commits.apply(file("last")));
    assert!(asked.as_mut().now_or_never().is_none());
    desk.stop().await;
    asked.await.unwrap();
    assert_eq!(desk.state().root(desk.name()).unwrap(), Some(commits.root()));
    assert!(matches!(commits.apply(file("later")).await, Err(MirrorError::Closed)));
}
