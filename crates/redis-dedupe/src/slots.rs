//! Which of a Cluster's 16,384 slots a key belongs to.

/// How many there are.
pub(crate) const SLOTS: u16 = 16_384;

/// The slot of a key: by what stands in its first pair of braces, if something does, else by all of it.
///
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model>
pub(crate) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let inner = &key[open + 1..];
        let close = inner.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &inner[..close])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        let [high, _] = crc.to_be_bytes();
        (crc << 8) ^ TABLE[usize::from(high ^ byte)]
    })
}

static TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte: u16 = 0;
    while byte < 256 {
        let mut crc = byte << 8;
        let mut bit = 0;
        while bit < 8 {
            let carry = crc & 0x8000 != 0;
            crc <<= 1;
            if carry {
                crc ^= 0x1021;
            }
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::slot;

    #[test]
    fn slots_are_those_of_the_specification() {
        // `CLUSTER KEYSLOT` of Redis 8.0.6.
        let cases: [(&[u8], u16); 6] = [
            (b"123456789", 0x31C3),
            (b"", 0),
            (b"foo", 12182),
            (b"{foo}bar", 12182),
            (b"x{foo}{bar}", 12182),
            (b"foo{}", 5542),
        ];
        for (key, wanted) in cases {
            assert_eq!(slot(key), wanted, "{}", String::from_utf8_lossy(key));
        }
        assert_eq!(slot(b"foo{{bar}}"), slot(b"{bar"));
        assert_ne!(slot(b"a{b"), slot(b"b"));
    }
}
