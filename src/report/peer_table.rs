//! Peers in tables and charts, each under its name with versions, beside our own numbers for the same work.

use super::{
    bars::Bar,
    table::{Table, ms},
    training_table as end,
};
use crate::{
    measure::{
        peers::{Peer, PeerCase, Timed},
        record::{Case, Training},
        work::Pass,
    },
    swiglu,
};

/// The tables of these peers: passes of the layer, and epochs of the network.
pub fn tables(peers: &[&PeerCase], cases: &[&Case], trainings: &[&Training]) -> Vec<Table> {
    [layers(peers, cases), epochs(peers, trainings)].into_iter().flatten().collect()
}

/// What the same work and setting means for a pass: device, precision, shape.
pub fn same_pass(peer: &PeerCase, case: &Case) -> bool {
    peer.pass == Timed::Pass(case.pass)
        && (peer.device == case.device && peer.precision == case.precision && peer.cache == case.cache)
        && (peer.batch, peer.inputs, peer.hidden) == (case.batch, case.inputs, case.hidden)
}

/// The same for an epoch: device, precision, shapes, what learns.
pub fn same_epoch(peer: &PeerCase, training: &Training) -> bool {
    let config = &training.configuration;
    peer.pass == Timed::Epoch
        && (peer.device == config.device && peer.precision == config.precision && config.network.depth == 1)
        && (peer.batch, peer.inputs, peer.hidden) == (config.batch_size, config.network.width, config.network.hidden)
        && peer.trains_wf == training.trains_wf
}

/// Our fastest in the same work: its name and time.
fn fastest(all: impl Iterator<Item = (String, Option<f64>)>) -> Option<(String, f64)> {
    all.filter_map(|(name, time)| Some((name, time?))).min_by(|a, b| a.1.total_cmp(&b.1))
}

fn time(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), ms)
}

/// Our fastest, and how many times the peer's speed that is; a mark where the peer does less.
fn beside(ours: Option<(String, f64)>, peer: &PeerCase) -> [String; 3] {
    let Some((name, best)) = ours else { return ["-", "-", "-"].map(Into::into) };
    let mark = if peer.peer == Peer::Gemm { "*" } else { "" };
    let ratio = peer.median_ms.map_or_else(|| "-".into(), |theirs| format!("{:.2}{mark}", theirs / best));
    [name, ms(best), ratio]
}

fn layers(peers: &[&PeerCase], cases: &[&Case]) -> Option<Table> {
    let mut peers: Vec<(Pass, &PeerCase)> = peers
        .iter()
        .filter_map(|peer| match peer.pass {
            Timed::Pass(pass) => Some((pass, *peer)),
            Timed::Epoch => None,
        })
        .collect();
    peers.sort_by_key(|(pass, peer)| (peer.device.clone(), peer.precision.name(), *pass));
    let header =
        ["peer", "pass", "precision", "B", "D", "H", "median ms", "p10", "p90", "error", "our fastest", "ms", "x peer"];
    let mut table = Table::new("Peers: the layer, the same work in the same run (warm cache)", 3, &header);
    for (pass, peer) in &peers {
        let same = cases.iter().filter(|case| case.ok && same_pass(peer, case));
        let ours = fastest(same.map(|case| (case.swiglu.clone(), case.median_ms)));
        let mut row = vec![
            peer.name.clone(),
            pass.name().into(),
            peer.precision.name().into(),
            peer.batch.to_string(),
            peer.inputs.to_string(),
            peer.hidden.to_string(),
            if peer.ok { time(peer.median_ms) } else { "FAILED".into() },
            time(peer.p10_ms),
            time(peer.p90_ms),
            peer.rel_err.map_or_else(|| "not finite".into(), |error| format!("{error:.1e}")),
        ];
        row.extend(beside(ours, peer));
        table.rows.push(row);
    }
    table
        .notes
        .push("x peer: how many times faster our fastest is, at the same shape, precision and gradients.".into());
    if peers.iter().any(|(_, peer)| peer.peer == Peer::Gemm) {
        table.notes.push("* less work: the packed product alone, without the gate.".into());
    }
    (!table.rows.is_empty()).then_some(table)
}

fn epochs(peers: &[&PeerCase], trainings: &[&Training]) -> Option<Table> {
    let header = [
        "peer",
        "precision",
        "D",
        "H",
        "B",
        "train ms an epoch",
        "inference ms",
        "accuracy %",
        "Wf learns",
        "our fastest",
        "ms",
        "x peer",
    ];
    let mut table = Table::new("Peers: a training of the whole network, in the same run", 2, &header);
    let epochs: Vec<&PeerCase> = peers.iter().copied().filter(|peer| peer.pass == Timed::Epoch).collect();
    for peer in &epochs {
        let same = trainings.iter().filter(|training| same_epoch(peer, training));
        let ours = fastest(same.map(|t| (t.name(), end::train_ms(t))));
        let mut row = vec![
            peer.name.clone(),
            peer.precision.name().into(),
            peer.inputs.to_string(),
            peer.hidden.to_string(),
            peer.batch.to_string(),
            time(peer.median_ms),
            time(peer.infer_ms),
            peer.accuracy.map_or_else(|| "-".into(), |share| format!("{:.2}", 100.0 * share)),
            if peer.trains_wf { "yes" } else { "no" }.into(),
        ];
        row.extend(beside(ours, peer));
        table.rows.push(row);
    }
    let samples = epochs.iter().map(|peer| peer.samples).min()?;
    table.notes.push(format!(
        "Medians of at least {samples} epochs, after ours. Peers have initial weights and a constant learning rate of their \
         own, and leave out the last, ragged batch: compare the times. x peer: with what learns alike."
    ));
    Some(table)
}

/// A peer's bar in a chart of our own: `value` is the time that is drawn. None of a case that is wrong.
pub fn bar(peer: &PeerCase, value: Option<f64>, less_work: bool) -> Option<Bar> {
    let value = value.filter(|_| peer.ok)?;
    let accuracy = peer.accuracy.map_or(String::new(), |a| format!(", {:.2} %", 100.0 * a));
    let frozen = peer.pass == Timed::Epoch && !peer.trains_wf;
    Some(Bar {
        label: format!("{}{}", peer.name, if frozen { ", frozen" } else { "" }),
        note: format!("{} ms{accuracy}", ms(value)),
        value: Some(value),
        series: swiglu::ALL.len(),
        // What epochs spread over is not of the same kind: ours go from the fastest to the slowest.
        spread: peer.p10_ms.zip(peer.p90_ms).filter(|_| peer.pass != Timed::Epoch),
        less_work,
        ..Bar::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        measure::timer::Cache,
        report::{
            charts::{self, Picture},
            data::Data,
        },
        swiglu::{Gates, Precision},
    };

    fn case(swiglu: &str, median_ms: f64) -> Case {
        Case {
            swiglu: swiglu.into(),
            device: "cpu".into(),
            gpu: None,
            precision: Precision::Fp32,
            pass: Pass::Forward,
            gates: Gates::Save,
            batch: 64,
            inputs: 512,
            hidden: 256,
            cache: Cache::Warm,
            median_ms: Some(median_ms),
            p10_ms: None,
            p90_ms: None,
            samples: 9,
            tflops: None,
            gbytes_per_s: None,
            floor_ms: 0.1,
            rel_err: Some(1e-7),
            bound: 3e-6,
            ok: true,
            launches: 3,
            saved_bytes: 0,
            trains_wf: true,
            seed: 1,
            tiles: Vec::new(),
        }
    }

    fn peer(kind: Peer, name: &str, median_ms: f64) -> PeerCase {
        PeerCase {
            peer: kind,
            name: name.into(),
            versions: Default::default(),
            device: "cpu".into(),
            gpu: None,
            precision: Precision::Fp32,
            pass: Timed::Pass(Pass::Forward),
            batch: 64,
            inputs: 512,
            hidden: 256,
            cache: Cache::Warm,
            median_ms: Some(median_ms),
            p10_ms: None,
            p90_ms: None,
            samples: 9,
            rel_err: Some(2e-7),
            bound: 3e-6,
            ok: true,
            trains_wf: false,
            seed: 1,
            infer_ms: None,
            accuracy: None,
        }
    }

    #[test]
    fn a_peer_stands_beside_our_fastest_in_the_same_work_alone() {
        let (slow, fast) = (case("slow", 2.0), case("fast", 1.0));
        let (torch, gemm) = (peer(Peer::Torch, "PyTorch 9", 3.0), peer(Peer::Gemm, "PyTorch 9, product", 0.5));
        let elsewhere = PeerCase { batch: 65, ..torch.clone() };
        let wrong = PeerCase { ok: false, median_ms: None, rel_err: None, ..torch.clone() };
        let table = &tables(&[&torch, &gemm, &elsewhere, &wrong], &[&slow, &fast], &[])[0];
        let ends: Vec<_> = table.rows.iter().map(|row| row[6..].join(" ")).collect();
        assert_eq!(
            ends,
            [
                "3.00 - - 2.0e-7 fast 1.00 3.00",
                "0.500 - - 2.0e-7 fast 1.00 0.50*",
                "3.00 - - 2.0e-7 - - -",
                "FAILED - - not finite fast 1.00 -"
            ]
        );
        assert!(tables(&[], &[&fast], &[]).is_empty());
    }

    #[test]
    fn a_bar_joins_the_group_of_its_work_and_no_other() {
        let torch = peer(Peer::Torch, "PyTorch 9", 3.0);
        let wrong = PeerCase { ok: false, name: "wrong".into(), ..torch.clone() };
        let elsewhere = PeerCase { batch: 65, name: "elsewhere".into(), ..torch.clone() };
        let cases = vec![case("fast", 1.0), Case { batch: 128, ..case("fast", 1.0) }];
        let mut data = Data::default();
        (data.cases, data.peers) = (cases, vec![torch, wrong, elsewhere]);
        let charts = charts::all(&data);
        let forward = charts.iter().find(|chart| chart.name == "forward").expect("a chart");
        let Picture::Bars(bars) = &forward.picture else { panic!("bars") };
        let labels = |group: &(String, Vec<Bar>)| group.1.iter().map(|bar| bar.label.clone()).collect::<Vec<_>>();
        let groups: Vec<_> = bars.groups.iter().map(labels).collect();
        assert_eq!(groups, [vec!["fast", "PyTorch 9"], vec!["fast"]]);
        assert_eq!(bars.groups[0].1[1].note, "3.00 ms");
    }
}
