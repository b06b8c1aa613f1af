"""Segment a slide strip by strip, in bounded memory."""
