"""The algorithms by which tokens may be signed, by the kind of key that each needs. `none` is not among them."""

RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",)}
SECRET = ("HS256", "HS384", "HS512")
ALGORITHMS = (*RSA, *(name for names in CURVES.values() for name in names), *SECRET)
