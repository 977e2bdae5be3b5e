"""`python -m recognizer.data.faceworld --sheet faces.png`: a contact sheet of the face world."""

import argparse
from pathlib import Path

import cv2

from recognizer.data.faceworld import FaceWorld, FaceWorldConfig, contact_sheet


def main() -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(
        description="Draw people of the face world and their label maps."
    )
    parser.add_argument("--sheet", type=Path, required=True, help="picture file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world (default 0)")
    parser.add_argument("--columns", type=int, default=10, help="people (default 10)")
    parser.add_argument("--rows", type=int, default=4, help="images of each person (default 4)")
    parser.add_argument("--clean", action="store_true", help="without occluders and other faces")
    arguments = parser.parse_args()
    config = FaceWorldConfig().clean() if arguments.clean else FaceWorldConfig()
    world = FaceWorld(arguments.seed, max(200, arguments.columns), config)
    sheet = contact_sheet(world, arguments.columns, arguments.rows)
    if not cv2.imwrite(str(arguments.sheet), sheet):
        parser.error(f"cannot write {arguments.sheet}; does its folder exist?")
    print(f"{arguments.columns} people, {arguments.rows} images each: {arguments.sheet}")


if __name__ == "__main__":
    main()
