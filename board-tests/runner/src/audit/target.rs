//! Where an indirect call or jump leads, if that was settled at link time: the linker's stubs for far calls
//! (`__long_branch_…`, `__plt_…`) load a fixed address, and hand-written code sets one.

use petgraph::{Direction, graph::NodeIndex};

use super::{
    body::{Graph, Instruction},
    decode::{self, Value},
    elf::Image,
};

/// The register of the TOC.
const TOC: u32 = 2;
/// How far back the makings of a target are looked for.
const DEPTH: usize = 16;

/// The target of the `bctr` or `bctrl` at `jump`.
pub(super) fn resolve(image: &Image, graph: &Graph, jump: NodeIndex) -> Option<u64> {
    // Only CTR is followed.
    if graph.node_weight(jump)?.word & 0xfc00_07fe != 0x4c00_0420 {
        return None;
    }
    let mut node = jump;
    for _ in 0..DEPTH {
        let (before, instruction) = sole_predecessor(graph, node)?;
        node = before;
        if let Some(register) = decode::counter_source(instruction.word) {
            return value(image, graph, node, register, DEPTH);
        }
        passes(instruction)?;
    }
    None
}

/// What `register` holds before the instruction at `node`.
fn value(image: &Image, graph: &Graph, node: NodeIndex, register: u32, depth: usize) -> Option<u64> {
    if register == TOC {
        return image.toc();
    }
    let depth = depth.checked_sub(1)?;
    let (before, instruction) = sole_predecessor(graph, node)?;
    match decode::assignment(instruction.word) {
        Some((set, made)) if set == register => {
            let of = |source| value(image, graph, before, source, depth);
            match made {
                Value::Sum(None, number) => Some(number.cast_unsigned()),
                Value::Sum(Some(source), number) => Some(of(source)?.wrapping_add_signed(number)),
                Value::Or(source, bits) => Some(of(source)? | bits),
                Value::Load(base, offset) => image.constant(of(base)?.wrapping_add_signed(offset)),
            }
        }
        _ => {
            passes(instruction)?;
            value(image, graph, before, register, depth)
        }
    }
}

/// Instructions that change only what they are known to change.
fn passes(instruction: &Instruction) -> Option<()> {
    let word = instruction.word;
    let known = decode::assignment(word).is_some() || decode::is_plain_store(word);
    known.then_some(())
}

/// The one instruction from which the flow comes to `node`.
fn sole_predecessor(graph: &Graph, node: NodeIndex) -> Option<(NodeIndex, &Instruction)> {
    let mut all = graph.neighbors_directed(node, Direction::Incoming);
    let before = all.next()?;
    (all.next().is_none()).then_some(())?;
    Some((before, graph.node_weight(before)?))
}

#[cfg(test)]
mod tests {
    use super::super::{
        body::Body,
        elf::tests::{START, TABLE, made},
        finding::Kind,
        registers::Disassembler,
    };

    /// Where the first function's calls lead, and what was objected to.
    fn followed(functions: &[(&str, &[u32])], constants: &[u64]) -> (Vec<u64>, Vec<Kind>) {
        let image = made(functions, constants);
        let function = image.entered_at(START).unwrap();
        let body = Body::follow(&image, &Disassembler::new().unwrap(), function).unwrap();
        (
            body.calls.iter().map(|call| call.to).collect(),
            body.objections.iter().map(|objection| objection.kind).collect(),
        )
    }

    const BLR: u32 = 0x4e80_0020;

    #[test]
    fn a_long_branch_stub_leads_where_its_table_says() {
        // addis r12,r2,-1; ld r12,-0x7ff8+0x8000…: the table is 0x8000 below r2.
        let stub = [0x3d82_ffff, 0xe98c_0008 | 0x8000, 0x7d89_03a6, 0x4e80_0420];
        let far = START + 16;
        // -0x10000 + 0x8000 is outside; -1 << 16 with +0x8008 as a signed number is too low.
        assert_eq!(followed(&[("stub", &stub), ("g", &[BLR])], &[0, far]).1, [Kind::Indirect]);
        let stub = [0x3d82_0000, 0xe98c_8008, 0x7d89_03a6, 0x4e80_0420];
        assert_eq!(followed(&[("stub", &stub), ("g", &[BLR])], &[0, far]), (vec![far], vec![]));
        // A stub may save r2 first.
        let saving = [0xf841_0018, 0x3d82_0000, 0xe98c_8000, 0x7d89_03a6, 0x4e80_0420];
        assert_eq!(followed(&[("stub", &saving), ("g", &[BLR])], &[far + 4]), (vec![far + 4], vec![]));
    }

    #[test]
    fn an_address_made_of_constants_is_known() {
        // lis r12,0x2000; addi r12,r12,0x1018; mtctr r12; nop; bctrl; blr
        let code = [0x3d80_2000, 0x398c_1018, 0x7d89_03a6, 0x6000_0000, 0x4e80_0421, BLR];
        assert_eq!(followed(&[("f", &code), ("g", &[BLR])], &[]), (vec![START + 24], vec![]));
    }

    #[test]
    fn an_address_out_of_nowhere_is_not() {
        // mtctr r3; bctrl; blr
        assert_eq!(followed(&[("f", &[0x7c69_03a6, 0x4e80_0421, BLR])], &[]).1, [Kind::Indirect]);
        // ld r12,0(r3); mtctr r12; bctrl; blr: a table that the caller brings.
        let code = [0xe983_0000, 0x7d89_03a6, 0x4e80_0421, BLR];
        assert_eq!(followed(&[("f", &code)], &[TABLE]).1, [Kind::Indirect]);
        // blrl, and bctar.
        assert_eq!(followed(&[("f", &[0x4e80_0021, BLR])], &[]).1, [Kind::Indirect]);
    }

    #[test]
    fn an_address_that_another_path_changes_is_not() {
        // lis r12,0x2000; bne .+8; lis r12,1; addi r12,r12,0x101c; mtctr r12; bctrl; blr
        let code = [0x3d80_2000, 0x4082_0008, 0x3d80_0001, 0x398c_101c, 0x7d89_03a6, 0x4e80_0421, BLR];
        assert_eq!(followed(&[("f", &code), ("g", &[BLR])], &[]).1, [Kind::Indirect]);
    }
}
