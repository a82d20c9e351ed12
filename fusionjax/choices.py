"""Names that users choose from; here so that a command line can check them without loading JAX."""

SCHEDULERS = (
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "euler",
    "euler_karras",
    "euler_ancestral",
    "lms",
    "lms_karras",
    "pndm",
)
CROPS = ("auto", "none")
DTYPES = ("float32", "bfloat16", "float16")
