//! Several names of one command: a failure of one stops no other.

use super::output;
use super::problem::Problem;

/// The exit status where some of several failed.
pub(crate) const SOME: u8 = 7;

/// The answers that came. A failure of the only one is the command's; of several each is told, and the status says so.
pub(crate) fn told<T>(answers: Vec<Result<T, Problem>>) -> Result<(Vec<T>, u8), Problem> {
    let is_alone = answers.len() == 1;
    let (mut done, mut status) = (Vec::new(), 0);
    for answer in answers {
        match answer {
            Ok(answer) => done.push(answer),
            Err(problem) if is_alone => return Err(problem),
            Err(problem) => {
                output::failure(&problem, problem.exit());
                status = SOME;
            }
        }
    }
    Ok((done, status))
}
