"""The machine's clocks.  Counterpart of the manager's Clock protocol."""

import asyncio
import time
from datetime import UTC, datetime


class BootClock:
    """Time since boot, suspended time included, so a lease ages while a laptop sleeps.  Source: clock_gettime(2)."""

    def now(self) -> float:
        """Seconds since boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime:
        """UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Let others run meanwhile."""
        await asyncio.sleep(seconds)
