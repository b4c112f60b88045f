"""The machine's clocks.  Counterpart of the manager's Clock protocol."""

import asyncio
import time
from datetime import UTC, datetime


class BootClock:
    """Time since boot, suspended time included, so a lease ages while a laptop sleeps.  Source: clock_gettime(2)."""

    def now(self) -> float:
        """Return the seconds since boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime:
        """Return the time of day in UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait, while other tasks run."""
        await asyncio.sleep(seconds)
