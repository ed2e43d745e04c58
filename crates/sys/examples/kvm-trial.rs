//! Says whether `/dev/kvm` runs guests, as `banger-qemu` asks it.

fn main() {
    let began = std::time::Instant::now();
    match sys::kvm::runs_guests() {
        Ok(()) => println!("kvm-trial: runs guests, found in {:?}", began.elapsed()),
        Err(error) => println!("kvm-trial: runs no guest: {error}, found in {:?}", began.elapsed()),
    }
}
