//! Small streams made by hand, right and wrong, without the crate's own writer.

/// The blocks of [`small`], by name and pages.
pub(crate) const BLOCKS: [(&str, u64); 2] = [("pc.ram", 4), ("rom", 1)];

#[derive(Clone, Default)]
pub(crate) struct Synthetic(pub(crate) Vec<u8>);

impl Synthetic {
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn be16(self, number: u16) -> Self {
        self.raw(&number.to_be_bytes())
    }

    pub(crate) fn be32(self, number: u32) -> Self {
        self.raw(&number.to_be_bytes())
    }

    pub(crate) fn be64(self, number: u64) -> Self {
        self.raw(&number.to_be_bytes())
    }

    pub(crate) fn name(self, name: &str) -> Self {
        self.raw(&[u8::try_from(name.len()).unwrap()]).raw(name.as_bytes())
    }

    /// The header, and the configuration without subsections.
    pub(crate) fn start() -> Self {
        Self::default().raw(b"QEVM").be32(3).raw(&[7]).be32(5).raw(b"pc-10")
    }

    pub(crate) fn section(self, kind: u8, id: u32, name: &str, version: u32) -> Self {
        self.raw(&[kind]).be32(id).name(name).be32(0).be32(version)
    }

    pub(crate) fn footer(self, id: u32) -> Self {
        self.raw(&[0x7e]).be32(id)
    }

    /// The set-up of RAM as section 2.
    pub(crate) fn ram_setup(self) -> Self {
        let total = BLOCKS.iter().map(|(_, pages)| pages << 12).sum::<u64>();
        let mut stream = self.section(1, 2, "ram", 4).be64(total | 0x04);
        for (name, pages) in BLOCKS {
            stream = stream.name(name).be64(pages << 12);
        }
        stream.be64(0x10).footer(2)
    }

    /// The start of a section of pages: 2 for one of many, 3 for the last.
    pub(crate) fn pages(self, kind: u8) -> Self {
        self.raw(&[kind]).be32(2)
    }

    pub(crate) fn end_of_pages(self) -> Self {
        self.be64(0x10).footer(2)
    }

    pub(crate) fn command(self, id: u16, payload: &[u8]) -> Self {
        self.raw(&[8]).be16(id).be16(u16::try_from(payload.len()).unwrap()).raw(payload)
    }

    pub(crate) fn device(self, id: u32, name: &str, state: &[u8]) -> Self {
        self.section(4, id, name, 1).raw(state).footer(id)
    }

    /// The end of the stream, and a description.
    pub(crate) fn end(self, description: &str) -> Self {
        let len = u32::try_from(description.len()).unwrap();
        self.raw(&[0, 6]).be32(len).raw(description.as_bytes())
    }
}

/// The description of the devices of [`small`].
pub(crate) const DESCRIPTION: &str = r#"{"configuration":{"vmsd_name":"configuration"},
    "page_size":4096,"devices":[
    {"name":"0000:00:03.0/virtio-mem-device-early","instance_id":0,"fields":[]},
    {"name":"timer","instance_id":0,"vmsd_name":"timer","version":1,
     "fields":[{"name":"ticks","type":"uint64","size":8}]},
    {"name":"old","instance_id":0,"size":3,
     "fields":[{"name":"data","size":3,"type":"buffer"}]},
    {"name":"0000:00:02.0/disk","instance_id":0,"vmsd_name":"disk","version":1,
     "fields":[{"name":"queue","array_len":3,"type":"uint16","size":2}],
     "subsections":[{"vmsd_name":"disk/more","version":1,
       "fields":[{"name":"flag","type":"bool","size":1}]}]}]}"#;

/// A stream of a guest that wrote to memory while it was captured.
pub(crate) fn small() -> Synthetic {
    Synthetic::start()
        .raw(&[5])
        .name("configuration/uuid")
        .be32(1)
        .raw(&[0xaa; 16])
        .command(1, &[])
        .command(2, &[0, 0, 0, 1])
        .ram_setup()
        .section(4, 8, "0000:00:03.0/virtio-mem-device-early", 1)
        .be64(4 << 30)
        .be64(130 << 21)
        .be64(1 << 21)
        .be32(0)
        .be64(0)
        .raw(&[0; 24])
        .footer(8)
        .pages(2)
        .be64(0x08)
        .name("pc.ram")
        .raw(&[0x7e; 4096])
        .be64(0x1000 | 0x02 | 0x20)
        .raw(&[0])
        .be64(0x2000 | 0x02 | 0x20)
        .raw(&[0])
        .be64(0x3000 | 0x08 | 0x20)
        .raw(&[0x20; 4096])
        .end_of_pages()
        .pages(2)
        .be64(0x02)
        .name("rom")
        .raw(&[0])
        .end_of_pages()
        .command(11, &[])
        .pages(3)
        .be64(0x2000 | 0x08)
        .name("pc.ram")
        .raw(&[5; 4096])
        .end_of_pages()
        .device(3, "timer", &[1; 8])
        .device(4, "old", &[0, 6, 0])
        .device(9, "0000:00:02.0/disk", b"aabbcc\x05\x09disk/more\0\0\0\x01\x01")
        .end(DESCRIPTION)
}
