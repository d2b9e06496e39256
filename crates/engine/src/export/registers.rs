//! The registers of a processor, out of the device state of a snapshot.
//!
//! QEMU's description says which fields the section `cpu` starts with. As far as they
//! are needed here they have been the same since its version 12 of 2009
//! (`target/i386/machine.c`); if they are not, there are no registers.

use serde_json::Value;
use tintype_stream::DeviceState;

use crate::error::{Error, Result};

/// The fields, up to the last that is needed: name, bytes of an element, elements.
const FIELDS: [(&str, u64, u64); 31] = [
    ("env.regs", 8, 16),
    ("env.eip", 8, 1),
    ("env.eflags", 8, 1),
    ("env.hflags", 4, 1),
    ("env.fpuc", 2, 1),
    ("env.fpus_vmstate", 2, 1),
    ("env.fptag_vmstate", 2, 1),
    ("env.fpregs_format_vmstate", 2, 1),
    ("env.fpregs", 10, 8),
    ("env.segs", 20, 6),
    ("env.ldt", 20, 1),
    ("env.tr", 20, 1),
    ("env.gdt", 20, 1),
    ("env.idt", 20, 1),
    ("env.sysenter_cs", 4, 1),
    ("env.sysenter_esp", 8, 1),
    ("env.sysenter_eip", 8, 1),
    ("env.cr[0]", 8, 1),
    ("env.cr[2]", 8, 1),
    ("env.cr[3]", 8, 1),
    ("env.cr[4]", 8, 1),
    ("env.dr", 8, 8),
    ("env.a20_mask", 4, 1),
    ("env.mxcsr", 4, 1),
    ("env.xmm_regs[0]", 16, 16),
    ("env.efer", 8, 1),
    ("env.star", 8, 1),
    ("env.lstar", 8, 1),
    ("env.cstar", 8, 1),
    ("env.fmask", 8, 1),
    ("env.kernelgsbase", 8, 1),
];

/// Where general registers are in QEMU's order: ax, cx, dx, bx, sp, bp, si, di, 8 to 15.
const AX: usize = 0;
const CX: usize = 1;
const DX: usize = 2;
const BX: usize = 3;
const SP: usize = 4;
const BP: usize = 5;
const SI: usize = 6;
const DI: usize = 7;

/// A segment register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Segment {
    selector: u32,
    base: u64,
    limit: u32,
    flags: u32,
}

/// The registers of one processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Registers {
    general: [u64; 16],
    instruction: u64,
    flags: u64,
    /// es, cs, ss, ds, fs, gs, and then ldt, tr, gdt, idt.
    segments: [Segment; 10],
    /// cr0, cr2, cr3, cr4.
    control: [u64; 4],
    kernel_gs_base: u64,
}

impl Registers {
    /// Reads those of all processors, in their order; none if they are not described as
    /// is known here.
    pub(super) fn of_all(state: &DeviceState) -> Result<Vec<Self>> {
        let damaged = || "the device state of the snapshot is damaged";
        let description: Value =
            serde_json::from_slice(state.description_bytes()).map_err(Error::step(damaged()))?;
        let described = description["devices"].as_array().into_iter().flatten();
        let mut processors = described.filter(|device| device["name"] == "cpu");
        if !processors.all(is_known) {
            return Ok(Vec::new());
        }
        let sections = state.sections().map_err(Error::step(damaged()))?;
        let processors = sections.iter().filter(|section| section.name == "cpu");
        processors
            .map(|section| {
                Self::read(section.state)
                    .ok_or_else(|| Error::failed("a processor's state is short"))
            })
            .collect()
    }

    /// Reads the start of a section.
    fn read(state: &[u8]) -> Option<Self> {
        let mut at = Cursor(state);
        let mut registers = Self::default();
        for register in &mut registers.general {
            *register = at.be64()?;
        }
        registers.instruction = at.be64()?;
        registers.flags = at.be64()?;
        at.skip(4 + 4 * 2 + 80)?;
        for segment in &mut registers.segments {
            *segment = Segment {
                selector: at.be32()?,
                base: at.be64()?,
                limit: at.be32()?,
                flags: at.be32()?,
            };
        }
        at.skip(4 + 8 + 8)?;
        for register in &mut registers.control {
            *register = at.be64()?;
        }
        at.skip(64 + 4 + 4 + 256 + 5 * 8)?;
        registers.kernel_gs_base = at.be64()?;
        Some(registers)
    }

    /// Returns the content of a note `NT_PRSTATUS` (`x86_64_elf_prstatus` in
    /// `target/i386/arch_dump.c`).
    pub(super) fn status(&self, number: u32) -> Vec<u8> {
        let [es, cs, ss, ds, fs, gs, ..] = self.segments;
        let general = |register: usize| self.general[register];
        let mut status = vec![0; 32];
        status.extend(number.to_le_bytes());
        status.resize(112, 0);
        let words = [
            general(15),
            general(14),
            general(13),
            general(12),
            general(BP),
            general(BX),
            general(11),
            general(10),
            general(9),
            general(8),
            general(AX),
            general(CX),
            general(DX),
            general(SI),
            general(DI),
            // What a system call was, which a core of a machine has none of.
            0,
            self.instruction,
            cs.selector.into(),
            self.flags,
            general(SP),
            ss.selector.into(),
            fs.base,
            gs.base,
            ds.selector.into(),
            es.selector.into(),
            fs.selector.into(),
            gs.selector.into(),
        ];
        status.extend(words.into_iter().flat_map(u64::to_le_bytes));
        status.resize(336, 0);
        status
    }

    /// Returns the content of QEMU's own note (`QEMUCPUState`, version 1, in the same
    /// file).
    pub(super) fn qemu(&self) -> Vec<u8> {
        const LEN: u32 = 440;
        let [es, cs, ss, ds, fs, gs, ldt, tr, gdt, idt] = self.segments;
        let [cr0, cr2, cr3, cr4] = self.control;
        let order = [AX, BX, CX, DX, SI, DI, SP, BP, 8, 9, 10, 11, 12, 13, 14, 15];
        let mut note = Vec::new();
        note.extend(1_u32.to_le_bytes());
        note.extend(LEN.to_le_bytes());
        note.extend(order.into_iter().flat_map(|register| self.general[register].to_le_bytes()));
        note.extend(self.instruction.to_le_bytes());
        note.extend(self.flags.to_le_bytes());
        for segment in [cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt] {
            for word in [segment.selector, segment.limit, segment.flags, 0] {
                note.extend(word.to_le_bytes());
            }
            note.extend(segment.base.to_le_bytes());
        }
        for register in [cr0, 0, cr2, cr3, cr4, self.kernel_gs_base] {
            note.extend(register.to_le_bytes());
        }
        note
    }
}

/// Tells whether a processor's section starts with the fields that are known.
fn is_known(device: &Value) -> bool {
    let fields = device["fields"].as_array().into_iter().flatten().map(|field| {
        let number = |key: &str| field[key].as_u64();
        (
            field["name"].as_str().unwrap_or_default(),
            number("size").unwrap_or_default(),
            number("array_len").unwrap_or(1),
        )
    });
    fields.take(FIELDS.len()).eq(FIELDS)
}

/// Takes numbers off the start of bytes.
struct Cursor<'c>(&'c [u8]);

impl Cursor<'_> {
    fn be64(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    fn be32(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.0 = self.0.get(len..)?;
        Some(())
    }
}
