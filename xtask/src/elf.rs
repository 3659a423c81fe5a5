//! What xtask reads from and removes from ELF files.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result, bail};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex,
    SymbolKind,
    build::elf::{Builder, SectionData},
    elf,
    read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _},
};

/// Bytes of one eBPF instruction.
const INSTRUCTION_LEN: u64 = 8;
/// The section of functions that programs call, and that are no programs.
const SHARED_TEXT: &str = ".text";

/// One function of an eBPF object that the kernel attaches somewhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: String,
    /// The section, which is how a loader tells the program's type and hook.
    pub(crate) hook: String,
    /// Of the program and of every function it calls, each once.
    pub(crate) instructions: u64,
}

/// What LLVM turns the writing of arrays and large values into. In BPF it costs a packet more than its verdict.
const SLOW: [&str; 3] = ["memset", "memcpy", "memmove"];

/// A function by its section and its offset there.
type Place = (SectionIndex, u64);

/// The programs of an eBPF object, in the order of hook and name.
pub(crate) fn programs(object: &[u8]) -> Result<Vec<Program>> {
    let file = ElfFile64::<Endianness>::parse(object).context("not an eBPF object")?;
    let mut sizes = HashMap::new();
    let mut slow = HashMap::new();
    let mut programs = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else { continue };
        let place = (index, symbol.address());
        sizes.insert(place, symbol.size());
        if SLOW.contains(&symbol.name()?) {
            slow.insert(place, symbol.name()?.to_owned());
        }
        let hook = file.section_by_index(index)?.name()?.to_owned();
        if hook != SHARED_TEXT {
            programs.push((place, Program { name: symbol.name()?.to_owned(), hook, instructions: 0 }));
        }
    }
    for (place, program) in &mut programs {
        let mut reached = HashSet::from([*place]);
        let mut open = vec![*place];
        while let Some(function) = open.pop() {
            let size =
                *sizes.get(&function).with_context(|| format!("{} calls into nowhere", program.name))?;
            program.instructions += size / INSTRUCTION_LEN;
            if let Some(name) = slow.get(&function) {
                bail!(
                    "program {} calls `{name}`, a loop over bytes: write fields one by one, zeros from `bits::opaque(0)`",
                    program.name
                );
            }
            open.extend(calls(&file, function, size)?.into_iter().filter(|callee| reached.insert(*callee)));
        }
    }
    let mut programs: Vec<Program> = programs.into_iter().map(|(_, program)| program).collect();
    programs.sort_by(|a, b| (&a.hook, &a.name).cmp(&(&b.hook, &b.name)));
    Ok(programs)
}

/// The functions of the object, not of the kernel, that one function calls.
fn calls(file: &ElfFile64<'_, Endianness>, (index, start): Place, size: u64) -> Result<Vec<Place>> {
    /// Opcode of a call, and the source register that says "of this object".
    const CALL: u8 = 0x85;
    const PSEUDO_CALL: u8 = 1;
    let section = file.section_by_index(index)?;
    let code = section.data_range(start, size)?.context("a function reaches past its section")?;
    let relocations: HashMap<u64, _> = section.relocations().collect();
    let mut callees = Vec::new();
    for (offset, instruction) in (start..).step_by(8).zip(code.chunks_exact(8)) {
        let &[CALL, registers, _, _, a, b, c, d] = instruction else { continue };
        if registers >> 4 != PSEUDO_CALL {
            continue;
        }
        // Counted from the next instruction, or, where the linker left a relocation, from before its symbol.
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        let (index, from) = match relocations.get(&offset).map(object::Relocation::target) {
            Some(RelocationTarget::Symbol(symbol)) => {
                let symbol = file.symbol_by_index(symbol)?;
                (
                    symbol.section_index().context("a call of a function that is not in the object")?,
                    symbol.address(),
                )
            }
            _ => (index, offset),
        };
        let target =
            from.checked_add_signed((distance + 1) * 8).context("a call before the start of a section")?;
        callees.push((index, target));
    }
    Ok(callees)
}

/// Fails unless the object carries BTF: loaders need it for maps, people for `bpftool map dump`.
pub(crate) fn require_btf(object: &[u8]) -> Result<()> {
    let file = ElfFile64::<Endianness>::parse(object).context("not an eBPF object")?;
    for name in [".BTF", ".BTF.ext"] {
        if file.section_by_name(name).is_none() {
            bail!(
                "the object has no section {name}: bpf-linker was run without --btf, or without debug information"
            );
        }
    }
    Ok(())
}

/// The object without DWARF; code, maps, BTF and what relocates them stay.
pub(crate) fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("not an eBPF object")?;
    let dwarf = |name: &[u8]| name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    let mut deleted = Vec::new();
    for section in builder.sections.iter_mut().filter(|section| dwarf(&section.name)) {
        section.delete = true;
        deleted.push(section.id());
    }
    for symbol in &mut builder.symbols {
        symbol.delete |= symbol.section.is_some_and(|section| deleted.contains(&section));
    }
    // LLVM keeps the names of sections and symbols in one table; the writer wants two.
    let has_names = builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString));
    if !has_names {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = elf::SHT_STRTAB;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the object without DWARF")?;
    Ok(stripped)
}

/// Why the program needs other files to run; nothing when it is static.
pub(crate) fn dynamic_needs(program: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<Endianness>::parse(program).context("not a 64-bit ELF program")?;
    let endian = file.endian();
    let mut needs = Vec::new();
    for segment in file.elf_header().program_headers(endian, program)? {
        if let Some(interpreter) = segment.interpreter(endian, program)? {
            needs.push(format!("interpreter {}", String::from_utf8_lossy(interpreter)));
        }
    }
    let dynamic = file.elf_section_table().dynamic_table(endian, program)?;
    for entry in dynamic.iter() {
        if entry.tag == elf::DT_NEEDED {
            needs.push(format!("library {}", String::from_utf8_lossy(dynamic.string(entry)?)));
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::build::elf::{Relocation, SymbolId};

    /// An object as LLVM writes it: one table of names, one program, a shared function, DWARF and BTF.
    fn sample() -> Vec<u8> {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        let mut section = |name: &'static str, sh_type, data| {
            let section = builder.sections.add();
            section.name = name.into();
            section.sh_type = sh_type;
            section.data = data;
            section.id()
        };
        let code = |instructions: usize| SectionData::Data(vec![0; instructions * 8].into());
        // `xdp` calls `copy`, through a relocation; `copy` calls itself; nobody calls `unused`.
        let call = |distance: i32| [&[0x85, 0x10, 0, 0], distance.to_le_bytes().as_slice()].concat();
        let program = [vec![0; 8], call(-1), vec![0; 8]].concat();
        let functions = [vec![0; 32], call(-3), vec![0; 8]].concat();
        let xdp = section("xdp.frags", elf::SHT_PROGBITS, SectionData::Data(program.into()));
        let text = section(".text", elf::SHT_PROGBITS, SectionData::Data(functions.into()));
        let dwarf = section(".debug_info", elf::SHT_PROGBITS, code(9));
        for name in [".BTF", ".BTF.ext"] {
            section(name, elf::SHT_PROGBITS, code(1));
        }
        let symbols = section(".symtab", elf::SHT_SYMTAB, SectionData::Symbol);
        section(".strtab", elf::SHT_STRTAB, SectionData::String);
        section(".shstrtab", elf::SHT_STRTAB, SectionData::SectionString);
        let mut symbol = |name: &'static str, section, kind, [value, size]: [u64; 2]| -> SymbolId {
            let symbol = builder.symbols.add();
            symbol.name = name.into();
            symbol.section = Some(section);
            symbol.set_st_info(elf::STB_GLOBAL, kind);
            symbol.st_value = value;
            symbol.st_size = size;
            symbol.id()
        };
        symbol("xdp", xdp, elf::STT_FUNC, [0, 24]);
        symbol("unused", text, elf::STT_FUNC, [0, 16]);
        let copy = symbol("copy", text, elf::STT_FUNC, [16, 32]);
        symbol("", dwarf, elf::STT_SECTION, [0, 0]);
        let relocation =
            Relocation { r_offset: 8, symbol: Some(copy), r_type: elf::R_BPF_64_32, r_addend: 0 };
        let relocations = builder.sections.add();
        relocations.name = ".relxdp.frags".into();
        relocations.sh_type = elf::SHT_REL;
        relocations.sh_flags = elf::SHF_INFO_LINK.into();
        relocations.sh_link_section = Some(symbols);
        relocations.sh_info_section = Some(xdp);
        relocations.data = SectionData::Relocation(vec![relocation]);
        builder.set_section_sizes();
        let mut object = Vec::new();
        builder.write(&mut object).unwrap();
        object
    }

    #[test]
    fn stripping_leaves_what_a_loader_reads() {
        // Three of `xdp`, four of `copy`.
        let expected = [Program { name: "xdp".to_owned(), hook: "xdp.frags".to_owned(), instructions: 7 }];
        let object = sample();
        assert_eq!(programs(&object).unwrap(), expected);
        let stripped = without_dwarf(&object).unwrap();
        assert_eq!(programs(&stripped).unwrap(), expected);
        require_btf(&stripped).unwrap();
        let names = |object: &[u8]| -> Vec<String> {
            let file = ElfFile64::<Endianness>::parse(object).unwrap();
            file.sections().map(|section| section.name().unwrap().to_owned()).collect()
        };
        let mut kept = names(&object);
        kept.retain(|name| name != ".debug_info");
        assert_eq!(names(&stripped), kept);
    }

    #[test]
    fn dynamic_programs_are_told() {
        let this_test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = dynamic_needs(&this_test).unwrap();
        assert!(needs.iter().any(|need| need.starts_with("interpreter ")), "{needs:?}");
        assert!(needs.iter().any(|need| need.starts_with("library libc.")), "{needs:?}");
        assert_eq!(dynamic_needs(&sample()).unwrap(), Vec::<String>::new());
    }
}
