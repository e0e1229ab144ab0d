"""What the gateway says of itself."""

from fastapi import APIRouter


def router() -> APIRouter:
    return APIRouter()
