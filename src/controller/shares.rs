//! Pure: how the target groups of one load balancer share its quota of targets, so that every port keeps some and not
//! the first one all (cloud-provider-aws#1328).
//!
//! AWS does not say how many targets there may be, and counts by load balancer and zone. So what is registered when it
//! refuses more is taken for all there is room for, and dealt out evenly. After a while all is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::placement::Targets;
use crate::model::id::{InstanceId, TargetGroupArn};

/// After this time more targets are tried again: quotas are raised by people.
pub const LIFETIME: Duration = Duration::from_mins(5);

/// How many instances each of these target groups may have, beside those of attachments. Nothing where there is nothing
/// to deal out.
pub fn deal(
    groups: &BTreeSet<TargetGroupArn>,
    targets: &BTreeMap<TargetGroupArn, Targets>,
) -> BTreeMap<TargetGroupArn, usize> {
    let count = |arn| targets.get(arn).map_or(0, |targets: &Targets| targets.direct.len());
    let total: usize = groups.iter().map(count).sum();
    if total == 0 {
        return BTreeMap::new();
    }
    let (each, rest) = (total / groups.len(), total % groups.len());
    // Who has the most keeps what is left over: it need not give it up.
    let mut by_size: Vec<_> = groups.iter().collect();
    by_size.sort_by_key(|arn| std::cmp::Reverse(count(arn)));
    by_size.into_iter().enumerate().map(|(index, arn)| (arn.clone(), each + usize::from(index < rest))).collect()
}

/// Cuts down what is to be registered, and adds to what is to be deregistered, so that at most so many are left.
pub fn keep_within(
    most: usize,
    direct: &BTreeSet<InstanceId>,
    register: &mut BTreeSet<InstanceId>,
    deregister: &mut BTreeSet<InstanceId>,
) {
    let staying: Vec<_> = direct.difference(deregister).cloned().collect();
    deregister.extend(staying.iter().skip(most).cloned());
    let room = most.saturating_sub(staying.len());
    *register = std::mem::take(register).into_iter().take(room).collect();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arn(number: usize) -> TargetGroupArn {
        format!("arn:tg/{number}").into()
    }

    fn instances(count: usize) -> BTreeSet<InstanceId> {
        (0..count).map(|number| format!("i-{number:03}").into()).collect()
    }

    fn registered(counts: &[usize]) -> BTreeMap<TargetGroupArn, Targets> {
        let targets = |count| Targets { known: true, direct: instances(count), ..Targets::default() };
        counts.iter().enumerate().map(|(number, count)| (arn(number), targets(*count))).collect()
    }

    #[test]
    fn what_there_is_room_for_is_dealt_out_evenly() {
        let targets = registered(&[10, 0, 0]);
        let groups = targets.keys().cloned().collect();
        assert_eq!(deal(&groups, &targets), [(arn(0), 4), (arn(1), 3), (arn(2), 3)].into());
        let none = registered(&[0, 0]);
        assert!(deal(&none.keys().cloned().collect(), &none).is_empty());
    }

    #[test]
    fn a_share_cuts_both_ways() {
        let (mut register, mut deregister) = (BTreeSet::new(), BTreeSet::new());
        keep_within(3, &instances(5), &mut register, &mut deregister);
        assert_eq!(deregister, ["i-003".into(), "i-004".into()].into());
        let (mut register, mut deregister) = (instances(5), BTreeSet::new());
        keep_within(3, &BTreeSet::new(), &mut register, &mut deregister);
        assert_eq!((register.len(), deregister.len()), (3, 0));
    }

    proptest! {
        #[test]
        fn nobody_gains_more_than_one_over_another_and_nothing_is_lost(
            counts in prop::collection::vec(0usize..20, 1..6),
        ) {
            let targets = registered(&counts);
            let shares = deal(&targets.keys().cloned().collect(), &targets);
            if counts.iter().sum::<usize>() > 0 {
                prop_assert_eq!(shares.values().sum::<usize>(), counts.iter().sum::<usize>());
                prop_assert!(shares.values().max().unwrap() - shares.values().min().unwrap() <= 1);
                // Once everybody has their share, nobody's changes any more.
                let dealt: Vec<_> = shares.values().copied().collect();
                let again = registered(&dealt);
                let mut once_more: Vec<_> = deal(&again.keys().cloned().collect(), &again).into_values().collect();
                let mut dealt = dealt;
                dealt.sort_unstable();
                once_more.sort_unstable();
                prop_assert_eq!(once_more, dealt);
            }
        }
    }
}
