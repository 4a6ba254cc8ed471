import os

from zmesh.runtime.watch import Watch


class Pipe:
    """A pipe with something in it, and how often it was seen readable."""

    def __init__(self, number: int = -1) -> None:
        self.fd, self._end = os.pipe()
        if number >= 0 and self.fd != number:
            os.dup2(self.fd, number)
            os.close(self.fd)
            self.fd = number
        os.write(self._end, b"x")
        self.seen = 0

    def read(self, fd: int) -> None:
        assert fd == self.fd
        self.seen += 1

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._end)


def look(watch: Watch) -> None:
    watch.dispatch(watch.wait(0))


def test_what_is_watched_is_read_until_it_is_removed() -> None:
    watch, pipe = Watch(), Pipe()
    watch.add(pipe.fd, pipe.read)
    look(watch)
    assert pipe.seen == 1
    assert pipe.fd in watch
    watch.remove(pipe.fd)
    look(watch)
    assert pipe.seen == 1
    assert pipe.fd not in watch
    pipe.close()


def test_a_reader_may_end_the_watch_of_one_that_is_readable_too() -> None:
    watch, first, second = Watch(), Pipe(), Pipe()
    read = []

    def only(fd: int) -> None:
        read.append(fd)
        for pipe in (first, second):
            watch.remove(pipe.fd)

    watch.add(first.fd, only)
    watch.add(second.fd, only)
    look(watch)
    assert len(read) == 1
    first.close()
    second.close()


def test_a_set_is_replaced_as_a_whole() -> None:
    watch, pipes = Watch(), [Pipe() for _ in range(3)]
    seen: list[int] = []
    watch.replace([pipes[0].fd, pipes[1].fd, pipes[1].fd], seen.append)
    watch.replace([pipes[1].fd, pipes[2].fd], seen.append)
    look(watch)
    assert sorted(seen) == sorted([pipes[1].fd, pipes[2].fd])
    for pipe in pipes:
        pipe.close()


def test_a_number_that_a_set_gave_up_belongs_to_who_has_it_now() -> None:
    # A library closes a socket of the set; before the set is told anew, a process begins whose pipe gets the number.
    watch, gone, stays = Watch(), Pipe(), Pipe()
    seen: list[int] = []
    watch.replace([gone.fd, stays.fd], seen.append)
    gone.close()
    new = Pipe(gone.fd)
    watch.add(new.fd, new.read)
    watch.replace([stays.fd], seen.append)
    look(watch)
    assert (new.seen, seen) == (1, [stays.fd])
    watch.remove(new.fd)
    new.close()
    stays.close()
