"""A far link: `link.py LISTEN TARGET RTT_MS MBIT` passes TCP on, late and at a limited rate.

All its connections share one line with two directions. Each byte waits for those before it in its
direction, at MBIT megabits a second, and then half of RTT_MS. What waits is bounded by what such a
line holds on its way and a little more, so that a sender feels the rate. The connection itself is
opened at once.
"""

import asyncio
import socket
import sys

PIECE = 16 << 10


class Direction:
    """One way of the line."""

    def __init__(self, delay_secs, bytes_per_sec):
        self.delay_secs = delay_secs
        self.bytes_per_sec = bytes_per_sec
        self.free_at = 0.0
        # The pieces under way: what a queue of a tenth of a second and the way itself hold.
        self.pieces_max = max(4, int(bytes_per_sec * (delay_secs + 0.1) / PIECE))

    async def carry(self, reader, writer):
        loop = asyncio.get_running_loop()
        under_way = asyncio.Queue(self.pieces_max)

        async def deliver():
            while (item := await under_way.get()) is not None:
                due, data = item
                await asyncio.sleep(due - loop.time())
                writer.write(data)
                await writer.drain()
            writer.write_eof()

        delivery = asyncio.create_task(deliver())
        try:
            while data := await reader.read(PIECE):
                start = max(self.free_at, loop.time())
                self.free_at = start + len(data) / self.bytes_per_sec
                await under_way.put((self.free_at + self.delay_secs, data))
                # Not read before the line has taken it, so that connections share it.
                await asyncio.sleep(self.free_at - loop.time() - 0.005)
            await under_way.put(None)
            await delivery
        finally:
            delivery.cancel()


def endpoint(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


async def main(listen, target, rtt_ms, mbit):
    delay_secs, bytes_per_sec = rtt_ms / 2000, mbit * 1e6 / 8
    up, down = Direction(delay_secs, bytes_per_sec), Direction(delay_secs, bytes_per_sec)

    async def passed_on(reader, writer):
        try:
            there_reader, there_writer = await asyncio.open_connection(*target)
        except OSError:
            writer.close()
            return
        for end in (writer, there_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [asyncio.create_task(up.carry(reader, there_writer)),
                asyncio.create_task(down.carry(there_reader, writer))]
        try:
            await asyncio.gather(*ways)
        except OSError:
            pass
        finally:
            for way in ways:
                way.cancel()
            writer.close()
            there_writer.close()

    server = await asyncio.start_server(passed_on, *listen, limit=PIECE)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(endpoint(sys.argv[1]), endpoint(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
