"""Certificates made on the spot: an authority, and one for a host, as openssl makes them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from support.requirements import needs

if TYPE_CHECKING:
    from pathlib import Path


def make_certificates(folder: Path, *addresses: str) -> dict[str, Path]:
    """Return tls_ca_file, tls_cert and tls_key, valid for these addresses."""
    needs("openssl")
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key = folder / "ca.pem", folder / "ca-key.pem"
    certificate, key = folder / "cert.pem", folder / "key.pem"
    request, extensions = folder / "request.csr", folder / "extensions"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(
        *("req", "-x509", *new_key, "-days", "2", "-subj", "/CN=authority of a test"),
        *("-keyout", str(ca_key), "-out", str(ca)),
    )
    _openssl("req", *new_key, "-subj", "/CN=hosts of a test", "-keyout", str(key), "-out", str(request))
    extensions.write_text(f"subjectAltName={','.join(f'IP:{one}' for one in addresses)}\n", encoding="ascii")
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial"),
        *("-days", "2", "-extfile", str(extensions), "-out", str(certificate)),
    )
    return {"tls_ca_file": ca, "tls_cert": certificate, "tls_key": key}


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
