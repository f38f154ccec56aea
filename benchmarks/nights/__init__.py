"""Many nights on real time: is what a night learns worth it, and does it forget?"""
