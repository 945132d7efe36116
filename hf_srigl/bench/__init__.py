"""Timing: calls in turns, single layers, whole models, and a model beside its dense twin."""
