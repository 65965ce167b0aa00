"""Custom ops of the engine: kernels without Paddle headers, bindings, one cached build, typed wrappers, NumPy twins."""

import warnings

# Said by `import paddle`; it is about a build system that is not used here.
warnings.filterwarnings("ignore", message="No ccache found")
