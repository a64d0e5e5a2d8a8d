"""What no front end of tracing follows, for models that are to convert module by module. No tests
here.
"""


def untraced(x):
    """Give torch.fx and the run without data up; does nothing to a tensor."""
    len(x)  # torch.fx has no answer
    x.grad = None  # no call of a graph
