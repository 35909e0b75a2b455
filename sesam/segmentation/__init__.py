"""The segmentation network, with mmsegmentation: data, loss, training, inference."""

import contextlib
import io
import warnings

with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
    # at import mmcv and mmseg list the optional parts that are not installed; none of them is used here
    import mmseg.datasets
    import mmseg.models  # noqa: F401  (registers its networks)
