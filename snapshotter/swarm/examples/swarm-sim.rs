use towline_swarm::sim::{Report, Scenario, run};
#[expect(clippy::print_stdout, reason = "the table is its output")]
fn main() {
    println!("{}", Report::HEADS);
    for s in [
        Scenario::crowd(8, 64, 200.0, 1000.0),
        Scenario::crowd(8, 64, 200.0, 200.0),
        Scenario::crowd(16, 64, 200.0, 1000.0),
        Scenario::crowd(16, 64, 200.0, 200.0),
        Scenario::crowd(64, 512, 1000.0, 1000.0),
        Scenario::crowd(256, 1024, 1000.0, 1000.0),
    ] {
        let t = std::time::Instant::now();
        let r = run(&s, 1);
        println!("{r} {} events {:?}", r.events, t.elapsed());
    }
}
