"""Sessions of one thread; and the command line in a process of its own with such sessions."""

from graphopt import _runtime


def sessions_take_one_thread():
    """The tests run on all cores already: the threads of a session would only wait for each other.

    A session that is told how many threads to take has them.
    """
    runtime = _runtime.onnxruntime()
    start = runtime.InferenceSession.__init__

    def with_one_thread(self, model, sess_options=None, *arguments, **settings):
        options = runtime.SessionOptions() if sess_options is None else sess_options
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        start(self, model, options, *arguments, **settings)

    runtime.InferenceSession.__init__ = with_one_thread


if __name__ == "__main__":
    from graphopt.cli import app

    sessions_take_one_thread()
    app(prog_name="graphopt")
