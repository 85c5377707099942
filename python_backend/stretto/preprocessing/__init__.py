"""Preprocessing: conversion of requests to prompts for the language model."""
