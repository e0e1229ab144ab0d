from fastapi import APIRouter

from ...settings.gateway import HttpSettings
from ..bus import Bus


def router(bus: Bus, settings: HttpSettings) -> APIRouter:
    return APIRouter()
