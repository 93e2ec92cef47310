"""The server's encodings as Python knows them, for the names in an archive: those are in the database's own bytes."""

_LATIN = {"LATIN5": "9", "LATIN6": "10", "LATIN7": "13", "LATIN8": "14", "LATIN9": "15", "LATIN10": "16"}
_CODECS = {
    "UTF8": "utf-8",
    **{f"LATIN{number}": f"iso8859-{number}" for number in range(1, 5)},
    **{name: f"iso8859-{number}" for name, number in _LATIN.items()},
    **{f"ISO_8859_{number}": f"iso8859-{number}" for number in range(5, 9)},
    **{f"WIN{number}": f"cp{number}" for number in (866, 874, *range(1250, 1259))},
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "EUC_CN": "gb2312",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_JP": "euc_jp",
    "EUC_KR": "euc_kr",
}
UNCONVERTED = frozenset({"SQL_ASCII", "MULE_INTERNAL"})
"""Encodings the server does not convert to UTF-8: a session gets the very bytes."""


def read_name(raw: bytes, encoding: str) -> str:
    """A name in a database's own bytes as a session reads it.

    Where Python has no such codec (EUC_TW), or knows other characters than the server, it comes out escaped.
    """
    return raw.decode(_CODECS.get(encoding, "utf-8" if encoding in UNCONVERTED else "ascii"), "backslashreplace")
